"""The stubs name what is there, and so does completion at run time, which imports no torch."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import projcore
from projcore import registry
from projcore._known import KNOWN

FOLDER = Path(projcore.__file__).parent
KINDS = ("projection", "module", "choice", "recipe")


def places(kind):
    """Returns the packages that a stub takes names from."""
    tree = ast.parse((FOLDER / f"{kind}s.pyi").read_text(encoding="utf-8"))
    return {
        node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    }


def test_the_kernel_is_typed():
    assert (FOLDER / "py.typed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stub_has_all_that_we_provide(kind):
    # A star gives what __all__ lists: a component that it lacks would be of unknown type.
    exported = {name for place in places(kind) for name in importlib.import_module(place).__all__}
    assert {each.attribute for each in KNOWN if each.kind == kind} <= exported


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_means_two_things_in_a_stub(kind):
    names = [name for place in places(kind) for name in importlib.import_module(place).__all__]
    assert len(names) == len(set(names))


def test_a_stub_needs_no_more_than_is_registered():
    for kind in KINDS:
        ours = {each.distribution for each in KNOWN}
        targets = {
            each.target.partition(":")[0]
            for each in registry.components(kind)
            if each.distribution in ours
        }
        assert places(kind) == targets


def test_completion_imports_no_torch(site):
    code = """
        import sys
        from projcore import modules, projections, recipes
        assert "VectorProjection" in dir(projections)
        assert "Adam" in dir(modules)
        dir(recipes)
        assert "torch" not in sys.modules
    """
    result = site.python(code)
    assert result.returncode == 0, result.stderr
