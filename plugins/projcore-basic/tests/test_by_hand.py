"""What modules make of each update is what torch's own functions make of gradients, for 200 steps.

The oracle is torch.optim.SGD with a hook that changes the gradients before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from projcore import Module, Optimizer
from projcore.modules import (
    LR,
    Cautious,
    Centralize,
    ClipNorm,
    ClipValue,
    HeavyBall,
    Normalize,
    NormGrowthLimiter,
    Scale,
    Sign,
    WeightDecay,
)

Hook = Callable[[list[Tensor]], Any]

# What may stand inside what: elementwise modules anywhere, those of all tensors in a vector too.
ELEMENT = {"bare", "vector", "scalar", "to", "scalar in to in vector"}
WHOLE = {"bare", "vector", "to"}
TENSOR = {"bare", "to"}


def each(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Hook]:
    """Returns a maker of hooks that put ``change(gradient, parameter)`` in a gradient's place."""

    def hook(params: list[Tensor]) -> None:
        for param in params:
            assert param.grad is not None
            param.grad = change(param.grad, param.detach())

    return lambda: hook


def clipping(limit: float, order: float, per_tensor: bool = False) -> Callable[[], Hook]:
    def hook(params: list[Tensor]) -> None:
        for some in [[param] for param in params] if per_tensor else [params]:
            clip_grad_norm_(some, limit, order)

    return lambda: hook


def unit(grad: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.normalize(grad, dim=dim) if grad.ndim > dim else unit_whole(grad)


def unit_whole(grad: Tensor) -> Tensor:
    return torch.nn.functional.normalize(grad.reshape(-1), dim=0).reshape(grad.shape)


def limiter(gamma: float) -> Hook:
    """Section 3.2 of Fira, in Python's numbers."""
    before: dict[int, float] = {}

    def hook(params: list[Tensor]) -> None:
        for i, param in enumerate(params):
            assert param.grad is not None
            norm = float(param.grad.square().sum()) ** 0.5
            if before.get(i) and norm / before[i] > gamma:
                param.grad = param.grad * (gamma * before[i] / norm)
                norm = gamma * before[i]
            before[i] = norm

    return hook


def careful(momentum: float) -> Hook:
    """Momentum of which only what agrees with the gradient is kept (algorithm 1 of the paper)."""
    buffers: dict[int, Tensor] = {}

    def hook(params: list[Tensor]) -> None:
        for i, param in enumerate(params):
            assert param.grad is not None
            buffers[i] = momentum * buffers.get(i, 0) + param.grad
            mask = (buffers[i] * param.grad > 0).to(param.dtype)
            param.grad = buffers[i] * mask * (mask.numel() / (mask.sum() + 1))

    return hook


CASES: dict[str, tuple[Callable[[], list[Module]], Callable[[], Hook], set[str]]] = {
    "scale": (lambda: [Scale(0.5)], each(lambda g, p: 0.5 * g), ELEMENT),
    "maximize": (lambda: [Scale(-0.1)], each(lambda g, p: -0.1 * g), ELEMENT),
    "cautious decay": (
        lambda: [WeightDecay(0.3, cautious=True)],
        each(lambda g, p: g + 0.3 * p * (g * p >= 0)),
        ELEMENT,
    ),
    "cautious l1 decay": (
        lambda: [WeightDecay(0.3, 1, cautious=True)],
        each(lambda g, p: g + 0.3 * p.sign() * (g * p >= 0)),
        ELEMENT,
    ),
    "l1": (lambda: [WeightDecay(0.3, norm=1)], each(lambda g, p: g + 0.3 * p.sign()), ELEMENT),
    "sign": (lambda: [Sign()], each(lambda g, p: g.sign()), ELEMENT),
    "clip value": (
        lambda: [ClipValue(0.3)],
        lambda: lambda params: clip_grad_value_(params, 0.3),
        ELEMENT,
    ),
    "clip norm": (lambda: [ClipNorm(0.5)], clipping(0.5, 2.0), WHOLE),
    "clip norm 1": (lambda: [ClipNorm(2.0, 1)], clipping(2.0, 1.0), WHOLE),
    "clip norm per tensor": (
        lambda: [ClipNorm(0.5, 3, per_tensor=True)],
        clipping(0.5, 3.0, per_tensor=True),
        TENSOR,
    ),
    "normalize": (lambda: [Normalize()], each(lambda g, p: unit_whole(g)), TENSOR),
    "normalize columns": (lambda: [Normalize(dim=0)], each(lambda g, p: unit(g, 0)), TENSOR),
    "normalize rows": (lambda: [Normalize(dim=(1,))], each(lambda g, p: unit(g, 1)), TENSOR),
    "centralize": (
        lambda: [Centralize()],
        each(lambda g, p: g - g.mean(1, keepdim=True) if g.ndim > 1 else g),
        TENSOR,
    ),
    "limit growth": (lambda: [NormGrowthLimiter(1.01)], lambda: limiter(1.01), TENSOR),
    "cautious": (lambda: [HeavyBall(0.9), Cautious()], lambda: careful(0.9), TENSOR),
}


def hooked(make_hook: Callable[[], Hook]) -> Callable[[Any], torch.optim.Optimizer]:
    def make(params: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=0.05)
        hook = make_hook()
        optimizer.register_step_pre_hook(
            lambda *_: hook([p for group in optimizer.param_groups for p in group["params"]])
        )
        return optimizer

    return make


HOW: dict[str, dict[str, Any]] = {
    "one group": {},
    "groups and a schedule": {
        "groups": [{"lr": 0.03}, {}],
        "schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.8),
    },
}


@pytest.fixture(scope="module")
def torchs() -> Callable[..., Tensor]:
    """Torch's own trajectory, computed once for all places."""
    return cache(lambda follow, name, how: follow(hooked(CASES[name][1]), **HOW[how]))


PAIRS = [(name, place) for name, (_, _, places) in CASES.items() for place in sorted(places)]


@pytest.mark.pairwise
@pytest.mark.parametrize(("name", "place_name"), PAIRS, indirect=["place_name"])
@pytest.mark.parametrize("how", HOW)
def test_200_steps(name: str, how: str, place: Any, follow: Any, same: Any, torchs: Any) -> None:
    modules = CASES[name][0]
    ours = follow(lambda params: Optimizer(params, *place([*modules(), LR(0.05)])), **HOW[how])
    same(ours, torchs(follow, name, how))


def test_cautious_of_complex_numbers_takes_each_part() -> None:
    random = torch.Generator().manual_seed(0)
    grads = [torch.randn(4, 3, generator=random, dtype=torch.complex128) for _ in range(3)]

    def end(real: bool) -> Tensor:
        start = torch.zeros(4, 3, dtype=torch.complex128)
        param = (torch.view_as_real(start).clone() if real else start).requires_grad_()
        optimizer = Optimizer([param], HeavyBall(0.9), Cautious(), LR(0.1))
        for grad in grads:
            param.grad = torch.view_as_real(grad).clone() if real else grad.clone()
            optimizer.step()
        return param.detach() if real else torch.view_as_real(param.detach())

    torch.testing.assert_close(end(False), end(True), rtol=1e-14, atol=1e-14)


def test_cautious_of_numbers_whose_product_underflows() -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.tensor([1e-30, -1e-30, 1e-30])
    Optimizer([param], Scale(1.0), Cautious()).step()
    torch.testing.assert_close(param.detach(), -param.grad * 3 / 4, rtol=1e-6, atol=0)


def limited(norms: Sequence[float], dtype: torch.dtype = torch.float64) -> list[float]:
    """Returns the norms of updates that come in with these norms, after the limiter."""
    param = torch.zeros(4, dtype=dtype, requires_grad=True)
    optimizer = Optimizer([param], NormGrowthLimiter(2.0))
    found = []
    for norm in norms:
        before = param.detach().clone()
        param.grad = torch.full((4,), norm / 2, dtype=dtype)
        optimizer.step()
        found.append(float((param.detach() - before).norm()))
        with torch.no_grad():
            param.zero_()
    return found


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1, 8, 8, 8], [1, 2, 4, 8]),
        ([4, 1, 8], [4, 1, 2]),  # it may fall
        ([4, 0, 8, 32], [4, 0, 8, 16]),  # after zero it begins anew
        ([0, 0, 8], [0, 0, 8]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_growth_is_limited(norms: list[float], expected: list[float], dtype: torch.dtype) -> None:
    assert limited(norms, dtype) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_growth_goes_on_after_what_is_not_finite(bad: float) -> None:
    assert limited([1, bad, 1, 1])[2:] == [1, 1]


def test_growth_in_bfloat16_is_by_the_factor_given() -> None:
    # 1.01 is nearer to 1 than the next number of bfloat16 above it: its memory must be finer.
    param = torch.zeros(64, dtype=torch.bfloat16, requires_grad=True)
    optimizer = Optimizer([param], NormGrowthLimiter(1.001))
    for step in range(200):
        param.grad = torch.full((64,), 1.0 if step == 0 else 100.0, dtype=torch.bfloat16)
        optimizer.step()
    norm = optimizer.state[param]["0/norm"]
    assert norm.dtype is torch.float32
    torch.testing.assert_close(norm, torch.tensor([8 * 1.001**199]), rtol=1e-4, atol=0)
