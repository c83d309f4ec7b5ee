"""Updates orthogonal to their parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.testing.map import learnt
from projcore.testing.parts import Armijo, EveryFact, Moments, Momentum, Scale
from projcore.testing.problem import flat, make_problem
from projcore.testing.run import train
from projcore_structural import TangentSphere

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex128]


def draw(*shape: int, dtype: Any = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_map_is_the_dense_projector(dtype: Any) -> None:
    """U is I - p p^T / (p^T p) on each tensor of two or more elements, written as a matrix."""
    problem = make_problem([(4, 3), (5,), (), (1, 1), (2, 3, 2)], dtype=dtype)
    point = problem.point()
    grads = [tensor.flip(tuple(range(tensor.ndim))) for tensor in point]
    made = learnt(TangentSphere([Scale()]), grads, point, torch.zeros(()))
    blocks = []
    for i, tensor in enumerate(point):
        p = flat([tensor])
        unit = p / p.norm()
        eye = torch.eye(len(p), dtype=torch.float64)
        blocks.append(eye - torch.outer(unit, unit) if i in made.applied else eye)
    inside = torch.block_diag(*blocks)
    tolerance = 1e-12 if dtype in (torch.float64, torch.complex128) else 0.02
    if dtype == torch.float32:
        tolerance = 1e-6
    columns = made.matrix()
    torch.testing.assert_close(columns, inside, rtol=0, atol=tolerance)
    dense = columns.T @ flat(grads)
    projected = flat(made.project(grads, "update"))
    torch.testing.assert_close(projected, dense, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("modules", [[Scale()], [Moments(), Momentum(), Scale()]], ids=str)
def test_the_update_is_orthogonal_whatever_runs_inside(modules: list[Any]) -> None:
    params = [draw(4, 3).requires_grad_(), draw(7, dtype=torch.complex128).requires_grad_()]
    optimizer = Optimizer(params, TangentSphere(modules))
    for step in range(4):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = draw(*param.shape, dtype=param.dtype, seed=step + 1)
        optimizer.step()
        for param, old in zip(params, before, strict=True):
            moved = flat([param.detach() - old])
            assert moved.norm() > 0.01
            assert abs(float(moved @ flat([old]))) < 1e-13 * float(flat([old]).norm())


def test_descent_is_the_formula() -> None:
    param = draw(3, 2).requires_grad_()
    param.grad = draw(3, 2, seed=1)
    p, u = param.detach().clone(), param.grad.clone()
    Optimizer([param], TangentSphere([Scale(0.5)])).step()
    expected = p - 0.5 * (u - (u * p).sum() / (p * p).sum() * p)
    torch.testing.assert_close(param.detach(), expected)


def test_what_has_no_tangent() -> None:
    """A parameter that is 0, one of a single element, and one without elements."""
    params = [torch.zeros(3), torch.tensor([2.0]), torch.tensor(2.0), torch.zeros(0, 2)]
    for param in params:
        param.requires_grad_().grad = torch.ones_like(param)
    Optimizer(params, TangentSphere([Scale(0.5)])).step()
    ends = [param.detach().reshape(-1).tolist() for param in params]
    assert ends == [[-0.5] * 3, [1.5], [1.5], []]


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_sizes_far_from_one(size: float) -> None:
    """Squares of these are no numbers of float32."""
    param = torch.tensor([2.0, 0.0]).mul(size).requires_grad_()
    param.grad = torch.tensor([3.0, 4.0])
    optimizer = Optimizer([param], TangentSphere([Scale(size)]))
    optimizer.step()
    torch.testing.assert_close(param.detach() / size, torch.tensor([2.0, -4.0]))


def test_a_closure_is_evaluated_on_the_tangent() -> None:
    """A module that asks for all facts gets those of z -> f(p + T z), at z = 0."""
    ours, by_hand = make_problem([(4, 3), (5,)]), make_problem([(4, 3), (5,)])
    actual = train(ours, [TangentSphere([EveryFact()])], 1)
    point = by_hand.point()

    def tangent(tensors: Any) -> list[Tensor]:
        return [t - (t * p).sum() / (p * p).sum() * p for t, p in zip(tensors, point, strict=True)]

    loss = by_hand.closure()
    grads = tangent([p.grad for p in by_hand.params])
    trial = [p - 0.1 * t for p, t in zip(point, grads, strict=True)]
    leaves = [t.clone().requires_grad_() for t in trial]
    there_loss = by_hand.loss(leaves)
    there = tangent(torch.autograd.grad(there_loss, leaves))
    factor = 0.05 * float(there_loss.detach() / (1 + loss**2))
    step = [factor * (0.5 * g + other) for g, other in zip(grads, there, strict=True)]
    for param, p, s in zip(actual, point, tangent(step), strict=True):
        torch.testing.assert_close(param, p - s, rtol=0, atol=1e-12)


def test_a_line_search_falls() -> None:
    problem = make_problem([(4, 3), (5,)])
    first = float(problem.closure())
    train(problem, [TangentSphere([Armijo()])], 20)
    assert float(problem.closure()) < first - 1
