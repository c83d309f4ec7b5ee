from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.errors import ArgumentError
from projcore.modules import LR, SAM, Adam
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

PLACES: dict[str, Any] = {
    "bare": lambda *modules: list(modules),
    "vector": lambda *modules: [VectorProjection(modules)],
    "scalar": lambda *modules: [ScalarProjection(modules)],
    "vector in to": lambda *modules: [To([VectorProjection(modules)], "float64")],
}


def row(tensors) -> Tensor:
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().reshape(-1).double() for t in reals])


def moved(problem, optimizer: Optimizer) -> Tensor:
    """Takes a step; returns what was subtracted."""
    before = row(problem.params)
    optimizer.step(problem.closure)
    return before - row(problem.params)


def climb(point: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    """The paper's formula, of vectors."""
    size = point.abs() if adaptive else torch.ones_like(point)
    return rho * size**2 * gradient / (size * gradient).norm()


@pytest.mark.pairwise
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_is_the_gradient_uphill(make, place, rho, adaptive):
    problem = make()
    optimizer = Optimizer(problem.params, *PLACES[place](SAM(rho, adaptive), LR(0.01)))
    for _ in range(3):
        x, calls = row(problem.params), problem.calls
        e = climb(x, problem.derivatives([x])[0], rho, adaptive)
        expected = problem.derivatives([x + e])[0]
        actual = 100 * moved(problem, optimizer)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        assert problem.calls == calls + 2


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("maps", [[(3, "tensor")], [(5, "tensor"), (6, "all")]])
def test_inside_a_lossy_projection_it_climbs_in_the_plane(make, linear, maps, adaptive):
    problem = make([(4, 2), (6,)])
    inner: list[Module] = [SAM(0.3, adaptive)]
    for rank, scope in reversed(maps):
        inner = [linear(inner, rank, scope)]
    whole, points = torch.eye(14, dtype=torch.float64), problem.point()
    for rank, scope in maps:
        each = linear([LR(1)], rank, scope)
        whole = whole @ each.matrix(points)
        points = each.project(points, points, None, None, [], [], "params")
    x = row(problem.params)
    e = climb(row(points), whole.T @ problem.derivatives([x])[0], 0.3, adaptive)
    expected = whole @ whole.T @ problem.derivatives([x + whole @ e])[0]
    actual = moved(problem, Optimizer(problem.params, *inner))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_adaptive_does_not_depend_on_the_scale_of_parameters(make):
    """A function of `x / s` is as sharp as the function of `x`; without it, that is not so."""
    scale = torch.linspace(0.1, 10, 6, dtype=torch.float64)
    start = torch.linspace(-2, 3, 6, dtype=torch.float64)

    def gradient_of_original(adaptive: bool, s: Tensor) -> Tensor:
        problem = make([(6,)])
        weight = torch.nn.Parameter(start * s)

        def closure():
            weight.grad = None
            loss = problem.loss([weight / s])
            loss.backward()
            return loss.detach()

        before = weight.detach().clone()
        Optimizer([weight], SAM(0.5, adaptive)).step(closure)
        return (before - weight.detach()) * s

    plain = torch.ones_like(scale)
    for adaptive in (True, False):
        one, other = (gradient_of_original(adaptive, s) for s in (plain, scale))
        assert torch.allclose(one, other, rtol=1e-9) == adaptive


def test_complex_parameters_are_pairs_of_reals(make):
    start = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    problems = [make(tensors=[start])]
    problems += [make(tensors=[torch.view_as_complex(start)]) for _ in range(2)]
    optimizers = [
        Optimizer(problems[0].params, SAM(0.3), LR(0.1)),
        Optimizer(problems[1].params, SAM(0.3), LR(0.1)),
        Optimizer(problems[2].params, ViewAsReal([SAM(0.3), LR(0.1)])),
    ]
    for _ in range(3):
        for optimizer, problem in zip(optimizers, problems, strict=True):
            optimizer.step(problem.closure)
        for problem in problems[1:]:
            torch.testing.assert_close(row(problem.params), row(problems[0].params))


@pytest.mark.parametrize("how", ["frozen", "no gradient"])
@pytest.mark.parametrize("place", ["bare", "vector"])
def test_a_frozen_parameter_stays_where_it_is(make, place, how):
    problem = make([(3, 2), (4,), (3,)])
    problem.leave_out(1, how)
    optimizer = Optimizer(problem.params, *PLACES[place](SAM(0.3)))
    x = row(problem.params)
    free = torch.ones_like(x)
    free[6:10] = 0
    e = climb(x, free * problem.derivatives([x])[0], 0.3, False)
    expected = free * problem.derivatives([x + e])[0]
    torch.testing.assert_close(moved(problem, optimizer), expected, rtol=1e-12, atol=1e-12)


def test_without_a_gradient_there_is_nothing_to_climb():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Optimizer([weight], SAM(), LR(1.0))

    def closure():
        weight.grad = torch.zeros_like(weight)
        return torch.tensor(1.0)

    optimizer.step(closure)
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_stands_before_adam(make):
    problem = make()
    optimizer = Optimizer(problem.params, SAM(), Adam(), LR(0.05))
    losses = [float(optimizer.step(problem.closure)) for _ in range(200)]
    assert losses[-1] < losses[0] - 5


@pytest.mark.parametrize("rho", [-0.1, math.nan])
def test_bad_settings_are_refused(rho):
    with pytest.raises(ArgumentError, match=r"SAM\(rho="):
        SAM(rho)
