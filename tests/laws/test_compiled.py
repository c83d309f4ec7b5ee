"""Compiled equals eager, for a few: each compilation takes seconds."""

from __future__ import annotations

import pytest
import torch

from projcore.testing import checks, parts
from projcore.testing.law import Violation

COMPONENTS = ("adam", "heavy_ball", "clip_norm", "vector", "to")


def compiled(*things):
    return [check for check in checks(*things, slow=True) if check.law.name == "compiled"]


@pytest.mark.parametrize("check", compiled(*COMPONENTS), ids=str)
def test_compiled_is_eager(check):
    check()


class FloatCounter(parts.Scale):
    """Counts in a 0-d float64 tensor, which a compiled step does not write on the CPU."""

    def init(self, tensor, settings):
        return {"step": torch.zeros((), dtype=torch.float64)}

    def apply(self, tensors, params, grads, loss, states, settings):
        for state in states:
            state["step"] += 1
        return [t / s["step"].to(t.dtype) for t, s in zip(tensors, states, strict=True)]


def test_that_law_can_fail():
    (check,) = compiled(FloatCounter)
    with pytest.raises(Violation, match="breaks the law 'compiled'"):
        check()
