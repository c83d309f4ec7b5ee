"""Every registered component has an up-to-date page, and an example that runs."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path

import pytest

from projcore import registry
from projcore.registry import Component

DOCS = Path(__file__).parents[2] / "docs"
OURS = [c for c in registry.components() if (c.distribution or "").startswith("projcore-")]


def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_those_that_the_registry_gives() -> None:
    expected = generator().pages()
    found = {path.name: path.read_text() for path in (DOCS / "components").glob("*.md")}
    assert sorted(found) == sorted(expected), "run make docs"
    for name, text in expected.items():
        assert found[name] == text, f"{name} is out of date: run make docs"


def test_something_is_registered() -> None:
    assert len(OURS) >= 20


@pytest.mark.parametrize("component", OURS, ids=lambda component: component.name)
def test_the_docstring_has_an_example_that_runs(component: Component) -> None:
    cls = registry.load(component.kind, component.name)
    module = importlib.import_module(cls.__module__)
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(cls, component.name, globs=dict(vars(module)))
    assert test.examples, f"{cls.__name__} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    output: list[str] = []
    result = runner.run(test, out=output.append)
    assert result.failed == 0, "".join(output)
