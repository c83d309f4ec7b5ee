"""Searches on a convex problem, in lossless, lossy, nested and changing projections."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module, OnRefresh, Optimizer, ProjectionBase
from projcore.modules import LBFGS, Backtracking, HeavyBall, NewtonCG, StrongWolfe
from projcore.projections import ScalarProjection, To, VectorProjection

SHAPES = [(4, 2), (6,), (3,)]
DIRECTIONS: dict[str, Any] = {
    "gradient": lambda: [],
    "heavy ball": lambda: [HeavyBall(0.9)],
    "lbfgs": lambda: [LBFGS(history_size=5)],
    "newton cg": lambda: [NewtonCG()],
}
LOSSLESS: dict[str, Any] = {
    "bare": lambda modules: modules,
    "vector": lambda modules: [VectorProjection(modules)],
    "scalar": lambda modules: [ScalarProjection(modules)],
    "vector in to": lambda modules: [To([VectorProjection(modules)], "float64")],
}
LOSSY: dict[str, list[tuple[int, str]]] = {
    "tensor": [(2, "tensor")],
    "all": [(7, "all")],
    "all in tensor": [(4, "tensor"), (6, "all")],
    "tensor in all": [(9, "all"), (4, "tensor")],
}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_search = pytest.mark.parametrize("search", [StrongWolfe, Backtracking])


def row(tensors) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def never_rise(losses: list[float]) -> bool:
    """But for rounding: a point is evaluated at x0 + U (z - z0), and reached by x0 - U u."""
    return all(after < before + 1e-12 for before, after in itertools.pairwise(losses))


def off(plane: Tensor, shifts: list[Tensor]) -> float:
    """How far shifts lead out of a plane at most, in parts of their length if that is above 1."""
    basis = torch.linalg.qr(plane).Q
    return max(
        float((shift - basis @ (basis.T @ shift)).norm() / max(1, shift.norm())) for shift in shifts
    )


def convex(make):
    problem = make(SHAPES)
    problem.coupling = 0.0
    return problem


@pytest.mark.pairwise
@every_direction
@every_search
@pytest.mark.parametrize("place", LOSSLESS)
def test_to_the_minimum_without_a_rise(make, place, direction, search):
    problem = convex(make)
    modules = [*DIRECTIONS[direction](), search()]
    optimizer = Optimizer(problem.params, *LOSSLESS[place](modules))
    losses = [float(optimizer.step(problem.closure)) for _ in range(60)]
    minimum = torch.linalg.solve(problem.hessian, problem.target)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] - float(problem.loss([minimum])) < 1e-3 * losses[0]


@pytest.mark.pairwise
@every_direction
@every_search
@pytest.mark.parametrize("maps", LOSSY)
def test_to_the_minimum_of_the_plane_and_never_off_it(make, linear, maps, direction, search):
    problem = convex(make)
    inner: list[Module] = [*DIRECTIONS[direction](), search()]
    plane, tensors = torch.eye(17, dtype=torch.float64), problem.point()
    for rank, scope in LOSSY[maps]:
        each = linear([HeavyBall()], rank, scope)
        plane = plane @ each.matrix(tensors)
        tensors = each.project(tensors, tensors, None, None, [], [], "params")
    for rank, scope in reversed(LOSSY[maps]):
        inner = [linear(inner, rank, scope)]
    start = row(problem.params)
    seen: list[Tensor] = []
    problem.seen = lambda point: seen.append(row(point) - start)
    optimizer = Optimizer(problem.params, *inner)
    losses = [float(optimizer.step(problem.closure)) for _ in range(40)]
    assert never_rise(losses)
    assert off(plane, seen) < 1e-12
    gradient, hessian = problem.derivatives([start])
    best = start - plane @ torch.linalg.solve(plane.T @ hessian @ plane, plane.T @ gradient)
    assert losses[-1] - float(problem.loss([best])) < 0.05 * (losses[0] - losses[-1])


class Turning(ProjectionBase):
    """A few dimensions of each tensor, others every third step; the map is not orthonormal."""

    scope = "tensor"

    def __init__(self, modules: Any, policy: OnRefresh) -> None:
        super().__init__(modules, project_params=True, project_grad=True)
        self.on_refresh = policy

    def refresh(self, tensors, params, grads, loss, states, settings):
        new = []
        for i, (tensor, state) in enumerate(zip(tensors, states, strict=True)):
            state["count"] = state.get("count", -1) + 1
            due = state["count"] % 3 == 0
            new.append({"basis": self.basis(tensor, 31 * state["count"] + i)} if due else None)
        return new if any(new) else None

    @staticmethod
    def basis(tensor: Tensor, seed: int) -> Tensor:
        size = tensor.numel()
        draw = torch.randn(size, 2, generator=torch.Generator().manual_seed(seed)).double()
        return draw.to(tensor.device)

    def project(self, tensors, params, grads, loss, states, settings, current):
        down = torch.linalg.pinv if current == "params" else torch.adjoint
        return [down(s["basis"]) @ t.reshape(-1) for t, s in zip(tensors, states, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        return [
            (s["basis"] @ z).reshape(p.shape)
            for z, s, p in zip(projected_tensors, states, params, strict=True)
        ]


@pytest.mark.pairwise
@every_direction
@every_search
@pytest.mark.parametrize("policy", ["transport", "reset"])
@pytest.mark.parametrize("nested", [False, True])
def test_when_the_plane_turns_it_goes_through_the_current_point(
    make, nested, policy, direction, search
):
    problem = convex(make)
    modules: list[Module] = [*DIRECTIONS[direction](), search()]
    inside = [VectorProjection(modules)] if nested else modules
    optimizer = Optimizer(problem.params, Turning(inside, policy))
    seen: list[Tensor] = []
    problem.seen = lambda point: seen.append(row(point))
    losses, planes = [], []
    for _ in range(30):
        seen.clear()
        start = row(problem.params)
        losses.append(float(optimizer.step(problem.closure)))
        states = [optimizer.state[parameter] for parameter in problem.params]
        planes.append(torch.block_diag(*(state["0/basis"] for state in states)))
        assert len(seen) > 1
        assert off(planes[-1], [*(p - start for p in seen), row(problem.params) - start]) < 1e-12
    assert never_rise(losses)
    assert not torch.equal(planes[0], planes[3])
    minimum = torch.linalg.solve(problem.hessian, problem.target)
    assert losses[-1] - float(problem.loss([minimum])) < 0.2 * (losses[0] - losses[-1])
