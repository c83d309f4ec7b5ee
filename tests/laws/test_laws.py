"""The laws for the kit's own parts, and that each plugin here checks what it registers."""

from __future__ import annotations

from pathlib import Path

from projcore import registry
from projcore.testing import parametrize_with_checks, parts

OWN = (parts.Scale, parts.Momentum, parts.Moments, parts.UnitNorm, parts.Armijo)
OWN_PROJECTIONS = (parts.Merge, parts.Scalars, parts.Mix)
PLUGINS = Path(__file__).parents[2] / "plugins"


@parametrize_with_checks(*OWN, *OWN_PROJECTIONS)
def test_own_parts(check):
    check()


def test_each_plugin_checks_what_it_registers():
    registered = {each.plugin for each in registry.components() if each.kind != "recipe"}
    checked = {
        path.parents[1].name.removeprefix("projcore-")
        for path in PLUGINS.glob("*/tests/test_laws.py")
        if f'parametrize_with_checks("{path.parents[1].name.removeprefix("projcore-")}"'
        in path.read_text()
    }
    assert registered <= checked
