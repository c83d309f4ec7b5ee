"""Numbers near the ends of what a dtype holds, and beyond: in all recipes, and in new bases."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from projcore import Optimizer, recipes, registry
from projcore.errors import NonFiniteError
from projcore.modules import LR, Adam, RMSprop
from projcore_lowrank import LDAdamSubspace, LowRank, RandomSubspace, Tucker

TRANSPORTING: dict[str, Any] = {
    "low_rank": lambda *inside: LowRank([*inside], rank=2, period=2, policy="transport"),
    "low_rank two-sided": lambda *inside: LowRank(
        [*inside], rank=2, period=2, policy="transport", side="full"
    ),
    "random": lambda *inside: RandomSubspace(
        [*inside], rank=2, period=2, kind="orthonormal", policy="transport"
    ),
    "ldadam": lambda *inside: LDAdamSubspace([*inside], rank=2),
    "tucker": lambda *inside: Tucker([*inside], rank=2, period=2, min_ndim=2, policy="transport"),
}


@pytest.mark.parametrize("name", TRANSPORTING)
@pytest.mark.parametrize("inside", [Adam(), RMSprop()], ids=str)
@pytest.mark.parametrize("size", [1e15, 1e19, 1e20, 1e25])
def test_squares_that_overflow_make_no_nan(name: str, inside: Any, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=generator))
    optimizer = Optimizer([weight], TRANSPORTING[name](inside), LR(0.01))
    for scale in (size, size, size, 1.0, 1.0, 1.0):
        weight.grad = scale * torch.randn(6, 5, generator=generator)
        optimizer.step()
        assert weight.isfinite().all()


def test_second_moments_that_are_nan_stay_so() -> None:
    """They came from a gradient that was; to make Inf of them would hide it."""
    weight = torch.nn.Parameter(torch.ones(6, 5))
    low_rank = LowRank([RMSprop()], rank=2, period=2, policy="transport")
    optimizer = Optimizer([weight], low_rank, LR(0.01))
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        weight.grad = torch.randn(6, 5, generator=generator)
        if step == 1:
            weight.grad[0, 0] = torch.nan
        optimizer.step()
    (second,) = (v for name, v in optimizer.state[weight].items() if name.endswith("square_avg"))
    assert second.isnan().any()


@pytest.mark.parametrize("make", [recipes.apollo, recipes.apollo_mini, recipes.fira])
@pytest.mark.parametrize("size", [1e-4, 1e-7, 0.0])
def test_in_float16_what_scales_the_update_may_exceed_it(make: Any, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=generator).half())
    start = weight.detach().clone()
    options = {} if make is recipes.apollo_mini else {"rank": 2}
    optimizer = make([weight], project="ndim==2", **options)
    for _ in range(3):
        weight.grad = (size * torch.randn(6, 5, generator=generator).sign()).half()
        optimizer.step()
    assert weight.isfinite().all()
    assert torch.equal(weight, start) == (size == 0)


NAMES = [each.name for each in registry.components("recipe")]
SHAPES = ((6, 5), (5,), (5, 7))


def make(name: str, dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], Optimizer]:
    made = registry.load("recipe", name)
    small: dict[str, Any] = {"rank": 2, "dimension": 10, "period": 3, "heads": {"weight0": 2}}
    small |= {"weight_decay": 0.0, "project": "ndim==2"}
    accepted = inspect.signature(made).parameters
    options = {key: value for key, value in small.items() if key in accepted}
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
    ]
    named = [(f"weight{i}", weight) for i, weight in enumerate(weights)]
    return weights, made(named, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-4])
def test_small_gradients_in_half_precision(name: str, dtype: torch.dtype, size: float) -> None:
    weights, optimizer = make(name, dtype)
    before = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for weight in weights:
            weight.grad = (size * torch.randn(weight.shape, generator=generator)).to(dtype)
        optimizer.step()
    assert all(weight.isfinite().all() for weight in weights)
    if size == 0:
        torch.testing.assert_close(weights, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_gradient_that_is_not_finite_shows(name: str, bad: float, good: int) -> None:
    """It is refused, and the parameter named; or some parameter is not finite."""
    weights, optimizer = make(name, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        if step == good:
            assert weights[2].grad is not None
            weights[2].grad[1, 2] = bad
        before = [weight.detach().clone() for weight in weights]
        try:
            optimizer.step()
        except NonFiniteError as error:
            torch.testing.assert_close(weights, before, rtol=0, atol=0, equal_nan=True)
            if "parameter 'weight2'" in str(error):
                return
            raise
    assert not all(weight.isfinite().all() for weight in weights)
