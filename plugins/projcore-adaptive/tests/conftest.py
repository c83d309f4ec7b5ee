"""Trajectories on a noisy quadratic, and the places in which modules must give the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

Place = Callable[[Sequence[Module]], list[Module]]

PLACES: dict[str, Place] = {
    "bare": list,
    "vector": lambda modules: [VectorProjection(modules)],
    "scalar": lambda modules: [ScalarProjection(modules)],
    "to": lambda modules: [To(modules, "float64")],
    "scalar in to in vector": lambda modules: [
        VectorProjection([To([ScalarProjection(modules)], "float64")])
    ],
}
COMPLEX_PLACES: dict[str, Place] = {
    "bare": list,
    "view as real": lambda modules: [ViewAsReal(modules)],
    "view as real in vector": lambda modules: [VectorProjection([ViewAsReal(modules)])],
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return PLACES[request.param]


@pytest.fixture(params=COMPLEX_PLACES)
def complex_place(request: pytest.FixtureRequest) -> Place:
    return COMPLEX_PLACES[request.param]


Shapes = tuple[tuple[int, ...], ...]

# A matrix, which is made transposed, a vector, a number and an empty tensor.
SHAPES: Shapes = ((4, 3), (5,), (), (0, 2))


def parameters(dtype: torch.dtype, shapes: Shapes = SHAPES) -> list[Tensor]:
    """Parameters of these shapes, the first, a matrix, transposed."""
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]
    made[0] = made[0].t()
    return [tensor.requires_grad_() for tensor in made]


@cache
def noises(dtype: torch.dtype, steps: int, shapes: Shapes) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(2)
    final = [param.shape for param in parameters(dtype, shapes)]
    return [
        [torch.randn(shape, generator=random, dtype=dtype) for shape in final] for _ in range(steps)
    ]


def trajectory(
    make: Callable[[Any], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float64,
    steps: int = 200,
    groups: Sequence[dict[str, Any]] | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    shapes: Shapes = SHAPES,
) -> Tensor:
    """Returns all parameters after each step on ``|p - 1|^2 / 2`` with noise in the gradients."""
    params = parameters(dtype, shapes)
    if groups:
        halves = [params[0::2], params[1::2]]
        given = [{"params": half, **group} for half, group in zip(halves, groups, strict=True)]
        optimizer = make(given)
    else:
        optimizer = make(params)
    scheduler = schedule(optimizer) if schedule else None
    points = []
    for step in noises(dtype, steps, shapes):
        for param, noise in zip(params, step, strict=True):
            param.grad = param.detach() - 1 + noise
        optimizer.step()
        if scheduler:
            scheduler.step()
        points.append(torch.cat([param.detach().reshape(-1) for param in params]))
    return torch.stack(points)


@pytest.fixture(params=["bare", "to"])
def tensor_place(request: pytest.FixtureRequest) -> Place:
    """Where a module sees each tensor by itself."""
    return PLACES[request.param]


@pytest.fixture
def follow() -> Callable[..., Tensor]:
    return trajectory


@pytest.fixture
def same() -> Callable[[Tensor, Tensor], None]:
    """Asserts that trajectories are equal to rounding, relative to their largest element."""

    def check(ours: Tensor, theirs: Tensor) -> None:
        double = ours.dtype in (torch.float64, torch.complex128)
        tolerance = 1e-12 if double else 1e-5
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * size)

    return check
