"""All laws, for everything that is registered, and for the kit's own parts."""

from __future__ import annotations

from projcore import registry
from projcore.testing import parametrize_with_checks, parts

PLUGINS = sorted({each.plugin for each in registry.components() if each.kind != "recipe"})
OWN = (parts.Scale, parts.Momentum, parts.Moments, parts.UnitNorm, parts.Armijo)
OWN_PROJECTIONS = (parts.Merge, parts.Scalars, parts.Mix)


@parametrize_with_checks(*PLUGINS)
def test_registered(check):
    check()


@parametrize_with_checks(*OWN, *OWN_PROJECTIONS)
def test_own_parts(check):
    check()
