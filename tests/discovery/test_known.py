"""What the kernel knows of our own plugins, its table and its stubs, is that of the plugins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from projcore import registry
from projcore._known import COMMANDS, KNOWN

ROOT = Path(__file__).resolve().parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location("known", ROOT / "tools" / "known.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize(("path", "text"), load_tool().texts().items())
def test_it_is_what_the_tool_writes(path, text):
    assert (ROOT / path).read_text(encoding="utf-8") == text, "run: python tools/known.py"


def test_it_is_what_is_registered():
    registered = {
        (each.kind, each.name, each.attribute, each.distribution, each.aliases)
        for each in registry.components()
        if each.distribution in {known.distribution for known in KNOWN}
    }
    assert registered == {
        (each.kind, each.name, each.attribute, each.distribution, each.aliases) for each in KNOWN
    }
    assert COMMANDS == {"compare": "lab", "plan": "lab"}


def test_every_one_has_a_summary_and_an_example():
    for component in registry.components():
        if component.distribution in {known.distribution for known in KNOWN}:
            assert component.summary.endswith(".")
            assert component.example is not None
