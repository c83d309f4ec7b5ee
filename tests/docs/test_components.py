"""Every registered component has an up-to-date page, and an example that runs."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from docs.generate import ours, pages
from projcore import registry
from projcore.registry import Component

DOCS = Path(__file__).parents[2] / "docs"
OURS = ours()


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return pages()


def test_generated_pages_are_up_to_date(expected: dict[str, str]) -> None:
    for name, text in expected.items():
        assert (DOCS / name).is_file(), f"{name} is missing: run make docs"
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"{name} is old: run make docs"


def test_there_are_no_other_pages_of_components(expected: dict[str, str]) -> None:
    found = {f"components/{path.name}" for path in (DOCS / "components").iterdir()}
    assert found <= expected.keys(), "run make docs"


def test_every_component_has_a_page(expected: dict[str, str]) -> None:
    assert {f"components/{component.name}.md" for component in OURS} <= expected.keys()


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
