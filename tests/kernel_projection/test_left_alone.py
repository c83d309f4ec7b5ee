"""Inside a projection, and on the way out of it, nothing is written into that others still read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, AdamW, HeavyBall
from projcore.projections import LowRank


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in ((6, 4), (4,), (3, 8), (6, 4)):
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        param.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        made.append(param)
    return made


@pytest.mark.parametrize("missing", [None, 0, 1], ids=str)
@pytest.mark.parametrize(
    ("inside", "options"),
    [
        ([Adam()], {}),
        ([AdamW(weight_decay=0.1)], {}),
        ([Adam(), HeavyBall()], {}),
        ([HeavyBall()], {}),
        ([Adam()], {"combine": "residual"}),
        ([Adam()], {"combine": "fira"}),
        ([Adam()], {"error_feedback": True}),
    ],
    ids=str,
)
def test_gradients_are_left_alone(inside: Any, options: Any, missing: int | None) -> None:
    """Whatever writes the parameters: with all passes it is as without any."""
    results = []
    for passes in (PASSES, frozenset[str]()):
        params = parameters()
        projection = LowRank(inside, rank=2, period=2, **options)
        optimizer = Optimizer(params, projection, LR(0.1))
        optimizer._use_passes(passes)
        for _ in range(4):
            if missing is not None:
                params[missing].grad = None
            before = [None if param.grad is None else param.grad.clone() for param in params]
            optimizer.step()
            for param, grad in zip(params, before, strict=True):
                assert (param.grad is None) == (grad is None)
                if grad is not None:
                    torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)
                    param.grad = grad.flip(0)
        results.append([param.detach() for param in params])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
