"""A loss multiplied by a number: the steps are the same, and if they cannot be, they get there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.modules import (
    LBFGS,
    LR,
    SAM,
    SPSA,
    Backtracking,
    FiniteDifference,
    NewtonCG,
    StrongWolfe,
)
from projcore.projections import LowRank, VectorProjection

SHAPES = ((3, 2), (3,))
PLACES: dict[str, Any] = {
    "bare": lambda *modules: list(modules),
    "vector": lambda *modules: [VectorProjection(modules)],
    "low_rank": lambda *modules: [LowRank(modules, rank=1, project_params=True)],
}
# What follows the scale of the loss by itself, from the first step or after it.
SECOND_ORDER: dict[str, Any] = {
    "lbfgs, strong_wolfe": lambda: [LBFGS(), StrongWolfe()],
    "lbfgs, backtracking": lambda: [LBFGS(history_size=3), Backtracking()],
    "lbfgs": lambda: [LBFGS(), LR(0.5)],
    "newton_cg, strong_wolfe": lambda: [NewtonCG(), StrongWolfe()],
    "newton_cg, backtracking": lambda: [NewtonCG(central=True), Backtracking()],
}
# What makes an update that has the scale of the loss, or needs one that has not.
FIRST_ORDER: dict[str, Any] = {
    "strong_wolfe": lambda divide: [divide, StrongWolfe()],
    "backtracking": lambda divide: [divide, Backtracking()],
    "sam": lambda divide: [SAM(0.1), divide, LR(0.1)],
    "asam": lambda divide: [SAM(0.5, adaptive=True), divide, LR(0.1)],
    "spsa": lambda divide: [SPSA(), divide, LR(1e-3)],
    "finite_difference": lambda divide: [FiniteDifference(), divide, LR(0.1)],
}


class Divide(Module):
    """Divides the update by a number, in the first steps."""

    def __init__(self, divisor: float, steps: float = float("inf")) -> None:
        super().__init__()
        self.divisor, self.steps, self.taken = divisor, steps, 0

    def step(self, update, objective, state):
        self.taken += 1
        return [tensor / self.divisor for tensor in update] if self.taken <= self.steps else update


def points(problem, optimizer: Optimizer, steps: int) -> list[list[Tensor]]:
    path = []
    for _ in range(steps):
        optimizer.step(problem.closure)
        path.append(problem.point())
    return path


@pytest.mark.parametrize(
    ("place", "dtype"),
    [("bare", torch.float64), ("vector", torch.float32), ("low_rank", torch.float64)],
)
@pytest.mark.parametrize("name", [*SECOND_ORDER, *FIRST_ORDER])
def test_a_power_of_two_changes_nothing(make, name, place, dtype):
    """It changes no rounding either. L-BFGS is given its first direction in the same units."""
    paths = []
    for factor in (1.0, 2.0**-40, 2.0**40):
        problem = make(SHAPES, dtype)
        problem.sign = factor
        if name in FIRST_ORDER:
            modules = FIRST_ORDER[name](Divide(factor))
        else:
            modules = SECOND_ORDER[name]()
            modules[:0] = [Divide(factor, 1)] if name.startswith("lbfgs") else []
        paths.append(points(problem, Optimizer(problem.params, *PLACES[place](*modules)), 8))
    moved = [one - other for one, other in zip(paths[0][0], paths[0][-1], strict=True)]
    assert all(tensor.abs().sum() > 1e-3 for tensor in moved)
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_finds_the_minimum_at_every_scale(make, name, factor, dtype, tolerance):
    """The first step of L-BFGS may differ; where it starts is not at zero, where all is small."""
    problem = make(SHAPES, dtype)
    problem.sign, problem.coupling = factor, 0.0
    expected = torch.linalg.solve(problem.hessian, problem.target)
    optimizer = Optimizer(problem.params, VectorProjection(SECOND_ORDER[name]()))
    *_, last = points(problem, optimizer, 40)
    actual = torch.cat([tensor.reshape(-1).double() for tensor in last])
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e8])
def test_parameters_in_small_and_large_units(unit):
    """A bracket that is narrow beside 1 is not narrow beside parameters that are small."""
    weight = Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64) * unit)
    optimizer = Optimizer([weight], VectorProjection([LBFGS(), StrongWolfe()]))

    def closure():
        optimizer.zero_grad()
        x, y = weight / unit
        loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        loss.backward()
        return loss.detach()

    for _ in range(60):
        loss = optimizer.step(closure)
    assert loss < 1e-10
