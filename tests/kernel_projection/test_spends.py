"""A projection that spends what it projects: a module inside writes into it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.modules import LR, Adam, AdamW, HeavyBall
from projcore.projections import LowRank


class Keeping(LowRank):
    """As it is, but what it projects stays."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spends = False


class Watching(LowRank):
    """Notes what it projects, and what it is given to write."""

    def project(self, *args: Any) -> Any:
        self.projected = super().project(*args)
        return self.projected

    def writes(
        self, targets: Any, blends: Any, tensors: Any, projected: Any, result: Any, *rest: Any
    ) -> Any:
        self.written_into = [one is other for one, other in zip(projected, result, strict=True)]
        return super().writes(targets, blends, tensors, projected, result, *rest)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in ((6, 4), (4,), (3, 8), (6, 4)):
        param = torch.nn.Parameter(torch.randn(shape, generator=generator))
        param.grad = torch.randn(shape, generator=generator)
        made.append(param)
    return made


@pytest.mark.parametrize("missing", [None, 0, 1], ids=str)
@pytest.mark.parametrize("inside", [[Adam()], [AdamW(weight_decay=0.1)]], ids=str)
def test_it_is_bitwise_the_same(inside: Any, missing: int | None) -> None:
    results = []
    for kind in (LowRank, Keeping):
        params = parameters()
        optimizer = Optimizer(params, kind(inside, rank=2, period=2), LR(0.1))
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
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("inside", "options", "spent"),
    [
        ([Adam()], {}, True),
        ([AdamW()], {}, False),
        ([Adam(), HeavyBall()], {}, False),
        ([HeavyBall()], {}, False),
        ([Adam()], {"combine": "residual"}, False),
        ([Adam()], {"combine": "fira"}, False),
        ([Adam()], {"error_feedback": True}, False),
    ],
)
def test_only_what_nothing_reads_is_written_into(inside: Any, options: Any, spent: bool) -> None:
    projection = Watching(inside, rank=2, **options)
    Optimizer(parameters(), projection, LR(0.1)).step()
    assert projection.written_into == [spent] * 3
