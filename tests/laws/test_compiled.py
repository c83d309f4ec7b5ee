"""Compiled equals eager, for a few: each compilation takes seconds."""

from __future__ import annotations

import pytest
import torch

from projcore.testing import checks, parts
from projcore.testing.law import Violation

COMPONENTS = ("adam", "clip_norm", "vector")


def compiled(*things):
    """Returns the check of that law for the first example of each."""
    made = [checks(thing, slow=True) for thing in things]
    return [next(check for check in row if check.law.name == "compiled") for row in made]


@pytest.mark.parametrize("check", compiled(*COMPONENTS), ids=str)
def test_compiled_is_eager(check):
    check()


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
