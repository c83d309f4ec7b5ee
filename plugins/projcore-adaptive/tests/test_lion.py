"""Lion against numbers computed one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.modules import LR, Lion, WeightDecay
from projcore.projections import ScalarProjection, VectorProjection


def by_hand(
    x: float, grads: list[float], lr: float, beta1: float, beta2: float, decay: float
) -> float:
    m = 0.0
    for g in grads:
        c = beta1 * m + (1 - beta1) * g
        m = beta2 * m + (1 - beta2) * g
        x = x * (1 - lr * decay) - lr * (math.copysign(1.0, c) if c else 0.0)
    return x


@pytest.mark.parametrize("outer", [list, VectorProjection, ScalarProjection])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.6)])
def test_numbers(outer: Any, betas: tuple[float, float]) -> None:
    start = [0.3, -1.2, 2.0, 0.7]
    grads = torch.randn(200, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads[:, 3] = 0.0
    parameter = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    modules = outer([Lion(betas), WeightDecay(0.1), LR(0.01)])
    optimizer = Optimizer([parameter], modules)
    for grad in grads:
        parameter.grad = grad
        optimizer.step()
    expected = [
        by_hand(x, grads[:, i].tolist(), 0.01, *betas, decay=0.1) for i, x in enumerate(start)
    ]
    torch.testing.assert_close(
        parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_complex_numbers_as_pairs() -> None:
    parameter = torch.zeros(1, dtype=torch.complex128, requires_grad=True)
    optimizer = Optimizer([parameter], Lion(), LR(0.5))
    parameter.grad = torch.tensor([3.0 - 0.1j], dtype=torch.complex128)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.5 + 0.5j]).cdouble())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("compile", [False, True])
def test_momentum_that_is_lost_shows(compile: bool) -> None:
    """And the other elements go on: without it, the sign of NaN would be 0 for good."""
    weight = torch.zeros(5, requires_grad=True)
    optimizer = Optimizer([weight], Lion(), LR(0.5), compile=compile)
    good = [1.0, 1.0, 1.0, -1.0, -1.0]
    for grad in (good, [1.0, math.nan, math.inf, -math.inf, -1.0], good):
        weight.grad = torch.tensor(grad)
        optimizer.step()
    expected = torch.tensor([-1.5, math.nan, math.nan, math.nan, 1.5])
    torch.testing.assert_close(weight.detach(), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_written_by_itself_it_is_the_update(dtype: torch.dtype, monkeypatch: Any) -> None:
    """Bitwise, in blocks of one parameter, with a decay for some of them."""
    monkeypatch.setattr("projcore_adaptive.lion.CPU_BLOCK", 1)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape in [(4, 3), (5,), ()]]
    ends = []
    for passes in (frozenset({"fold"}), frozenset({"fold", "fuse"})):
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        groups = [{"params": params[:1], "weight_decay": 0.0}, {"params": params[1:]}]
        optimizer = Optimizer(groups, Lion(), WeightDecay(0.1), LR(0.01))
        optimizer._use_passes(passes)
        assert ("by Lion, some" in optimizer.describe()) == ("fuse" in passes)
        noise = torch.Generator().manual_seed(1)
        for _ in range(5):
            for param in params:
                param.grad = torch.randn(param.shape, generator=noise).to(dtype)
            optimizer.step()
        moments = [optimizer.state[param]["0/exp_avg"] for param in params]
        ends.append([*(param.detach() for param in params), *moments])
    assert all(map(torch.equal, *ends))
