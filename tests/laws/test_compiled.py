"""Compiled equals eager, in one graph, for everything that is registered and traceable."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from projcore import registry
from projcore.testing import checks, parts
from projcore.testing.law import NotApplicable, Violation

pytestmark = pytest.mark.long

PLUGINS = sorted({each.plugin for each in registry.components() if each.kind != "recipe"})


def compiled(*things):
    """Returns the checks of that law."""
    return [check for check in checks(*things, slow=True) if check.law.name == "compiled"]


CHECKS = compiled(*PLUGINS)
# By element, of matrices, over all tensors, in another dtype, in other coordinates.
SAMPLE = (
    "lion",
    "muon(dtype=None, flatten=True)",
    "clip_norm(max_norm=1.0)",
    "to(dtype='float64')",
    "haar",
)


# All are traced, into one graph; then its operations run as they are.
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_compiled_is_eager(check, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run(check)


# Torch's own compiler takes seconds for each, most of them in a C++ compiler.
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            each, marks=() if each.subject.name in SAMPLE else pytest.mark.exhaustive, id=str(each)
        )
        for each in CHECKS
    ],
)
def test_compiled_by_inductor_is_eager(check):
    run(check)


def test_the_sample_is_there():
    assert {each.subject.name for each in CHECKS} >= set(SAMPLE)


def run(check):
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


class Elsewhere(parts.Scale):
    """Does something else when it is compiled."""

    def apply(self, tensors, *args):
        if torch.compiler.is_compiling():
            return [-tensor for tensor in tensors]
        return super().apply(tensors, *args)


def test_that_law_can_fail():
    (check,) = compiled(Elsewhere)
    with pytest.raises(Violation, match="breaks the law 'compiled'"):
        check()
