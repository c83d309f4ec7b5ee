"""Noise is Gaussian, of the variance that is said, and a function of seed, step and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import GradientNoise
from projcore.projections import ScalarProjection, VectorProjection


def noise(
    *modules: Any,
    shapes: Any = ((200, 500),),
    steps: int = 1,
    dtype: torch.dtype = torch.float64,
    make: Callable[[Any, torch.dtype], Tensor] = lambda shape, dtype: torch.zeros(
        shape, dtype=dtype
    ),
) -> list[list[Tensor]]:
    """Returns the updates that come of zero gradients, step by step."""
    params = [make(shape, dtype).requires_grad_() for shape in shapes]
    optimizer = Optimizer(params, *modules)
    found = []
    for _ in range(steps):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        found.append([old - p.detach() for p, old in zip(params, before, strict=True)])
    return found


@pytest.mark.parametrize(("eta", "gamma"), [(0.3, 0.55), (1.0, 0.0), (0.01, 1.5)])
def test_variance(eta: float, gamma: float) -> None:
    for step, (found,) in enumerate(noise(GradientNoise(eta, gamma), steps=4)):
        expected = (eta / (1 + step) ** gamma) ** 0.5
        # Of 100,000 numbers the deviation is known to 0.2 %, the mean to 0.3 % of it.
        assert float(found.std()) == pytest.approx(expected, rel=0.01)
        assert abs(float(found.mean())) < 0.015 * expected
        kurtosis = float((found / expected).pow(4).mean())
        assert kurtosis == pytest.approx(3, abs=0.1)  # of a Gaussian


def test_parts_of_complex_numbers() -> None:
    ((found,),) = noise(GradientNoise(0.25), dtype=torch.complex128)
    assert float(found.real.std()) == pytest.approx(0.5, rel=0.01)
    assert float(found.imag.std()) == pytest.approx(0.5, rel=0.01)


def correlation(one: Tensor, other: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]))


def test_noises_have_nothing_in_common() -> None:
    # Of tensors, of steps, of neighbouring seeds, and of places in the chain.
    shapes = ((100, 500),) * 2
    one = noise(GradientNoise(1.0, 0.0), shapes=shapes, steps=3)
    other = noise(GradientNoise(1.0, 0.0, seed=1), shapes=shapes)
    drawn = [tensor for step in one + other for tensor in step]
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]]
    assert max(correlation(a, b) for a, b in pairs) < 0.03
    ((twice,),) = noise(GradientNoise(1.0), GradientNoise(1.0))
    assert float(twice.std()) == pytest.approx(2**0.5, rel=0.01)  # not 2


def test_seed_decides() -> None:
    for seed in (0, -5, 2**70):
        one, other = (noise(GradientNoise(seed=seed), steps=2) for _ in range(2))
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_strides_do_not_matter() -> None:
    def transposed(shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape[::-1], dtype=dtype).t()

    plain = noise(GradientNoise(), shapes=((3, 4),))
    torch.testing.assert_close(
        noise(GradientNoise(), shapes=((3, 4),), make=transposed), plain, rtol=0, atol=0
    )


def test_in_projections() -> None:
    for projection in (VectorProjection, ScalarProjection):
        ((first, second),) = noise(projection([GradientNoise(1.0)]), shapes=((100, 500),) * 2)
        assert float(first.std()) == pytest.approx(1, rel=0.02)
        assert correlation(first, second) < 0.03


def test_a_parameter_waits_for_its_gradient() -> None:
    params = [torch.zeros(50_000, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = Optimizer(params, GradientNoise(1.0, 1.0))
    for step in range(3):
        params[0].grad = torch.zeros_like(params[0])
        params[1].grad = torch.zeros_like(params[1]) if step == 2 else None
        optimizer.step()
        assert bool(params[1].any()) is (step == 2)
    assert float(params[1].detach().std()) == pytest.approx(1, rel=0.02)


def test_tensors_that_come_one_by_one_have_noise_of_their_own() -> None:
    params = [torch.zeros(50_000, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = Optimizer([params[0]], GradientNoise(1.0, 0.0))
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    first = params[0].detach().clone()
    optimizer.add_param_group({"params": [params[1]]})
    params[1].grad = torch.zeros_like(params[1])
    optimizer.step()
    assert correlation(first, params[1].detach()) < 0.03


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"eta": -0.1}, ArgumentError),
        ({"gamma": -1.0}, ArgumentError),
        ({"seed": 0.5}, ArgumentTypeError),
        ({"seed": None}, ArgumentTypeError),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"GradientNoise\\({next(iter(arguments))}="):
        GradientNoise(**arguments)
