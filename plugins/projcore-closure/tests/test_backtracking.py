from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LBFGS, LR, Adam, Backtracking, HeavyBall, StrongWolfe
from projcore.projections import VectorProjection


@pytest.mark.parametrize("beta", [0.3, 0.8])
@pytest.mark.parametrize("c", [1e-4, 0.6])
def test_takes_the_first_step_that_suffices(make, beta, c):
    problem = make()
    settings = {"step_size": 4.0, "beta": beta, "c": c}
    optimizer = Optimizer(problem.params, Backtracking(**settings))
    for _ in range(4):
        before, calls = problem.point(), problem.calls
        loss = float(optimizer.step(problem.closure))
        grads = [p.grad for p in problem.params]
        slope = sum(float((g * g).sum()) for g in grads)
        step, tried = 4.0, 1
        while True:
            point = [x - step * g for x, g in zip(before, grads, strict=True)]
            if float(problem.loss(point)) <= loss - c * step * slope:
                break
            step, tried = step * beta, tried + 1
        assert tried > 1
        assert problem.calls - calls == 1 + tried
        for a, b in zip(problem.params, point, strict=True):
            assert torch.equal(a, b)


def test_asks_for_no_gradients(make):
    knowing, plain = make(), make()
    one = Optimizer(knowing.params, Backtracking())
    other = Optimizer(plain.params, Backtracking())
    for _ in range(4):
        one.step(knowing.closure)
        other.step(plain.plain_closure)
    assert knowing.backwards.count(True) == 4
    assert plain.backwards.count(False) == 0
    assert knowing.calls == plain.calls > 8
    for a, b in zip(knowing.params, plain.params, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("place", [lambda m: m, lambda m: [VectorProjection(m)]])
@pytest.mark.parametrize("direction", [Adam, lambda: HeavyBall(0.95), LBFGS])
def test_the_loss_never_rises(make, place, direction):
    """Momentum points uphill at times; then the gradient takes its place."""
    problem = make()
    optimizer = Optimizer(problem.params, *place([direction(), Backtracking()]))
    losses = [float(optimizer.step(problem.closure)) for _ in range(40)]
    assert losses == sorted(losses, reverse=True)
    # It stops where float64 ends, or has come far.
    assert losses[-1] < losses[0] - 50


def test_settings_of_a_group_reach_inside(make):
    ours, other = make(), make()
    inside = Optimizer(ours.params, VectorProjection([Backtracking()]))
    inside.param_groups[0]["beta"] = 0.3
    outside = Optimizer(other.params, Backtracking(beta=0.3))
    for _ in range(4):
        inside.step(ours.closure)
        outside.step(other.closure)
        for a, b in zip(ours.params, other.params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"step_size": 0.0},
        {"beta": 0.0},
        {"beta": 1.0},
        {"c": 0.0},
        {"c": 1.0},
        {"max_evaluations": 0},
        {"max_evaluations": 1.5},
        {"c": float("nan")},
    ],
)
def test_bad_settings_are_refused(arguments):
    (name,) = arguments
    with pytest.raises((ArgumentError, ArgumentTypeError), match=rf"Backtracking\({name}="):
        Backtracking(**arguments)


MODULES = {
    "adam, backtracking": lambda: [Adam(), LR(0.5), Backtracking()],
    "lbfgs, strong wolfe": lambda: [LBFGS(history_size=5), StrongWolfe()],
    "lbfgs, backtracking": lambda: [LBFGS(history_size=5), Backtracking()],
}
MAPS = {
    "tensor": [(3, "tensor")],
    "all": [(8, "all")],
    "all in tensor": [(5, "tensor"), (6, "all")],
    "tensor in all": [(9, "all"), (4, "tensor")],
}


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("maps", MAPS)
def test_inside_is_the_same_as_on_the_plane_by_hand(make, linear, modules, maps):
    """Running inside is running on z -> f(x0 + U (z - z0)), whose gradient autograd finds."""
    problem, by_hand = make([(4, 2), (6,)]), make([(4, 2), (6,)])
    inner = MODULES[modules]()
    for rank, scope in reversed(MAPS[maps]):
        inner = [linear(inner, rank, scope)]
    optimizer = Optimizer(problem.params, *inner)

    x0 = by_hand.point()
    chain = [linear([LR(1)], rank, scope) for rank, scope in MAPS[maps]]
    spaces, points = [x0], x0
    for each in chain:
        points = each.project(points, points, None, None, [], [], "params")
        spaces.append(points)
    z = [Parameter(point.clone()) for point in points]

    def outside() -> list[Tensor]:
        shift = [a - b for a, b in zip(z, points, strict=True)]
        for each, space in zip(reversed(chain), reversed(spaces[:-1]), strict=True):
            shift = each.unproject(shift, space, None, None, [], [], "update")
        return [a + b for a, b in zip(x0, shift, strict=True)]

    def closure(backward: bool = True) -> Tensor:
        loss = by_hand.loss(outside())
        if backward:
            for parameter in z:
                parameter.grad = None
            loss.backward()
        return loss.detach()

    plain = Optimizer(z, *MODULES[modules]())
    for _ in range(12):
        ours, theirs = optimizer.step(problem.closure), plain.step(closure)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for a, b in zip(problem.params, outside(), strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-9)
    assert problem.loss(problem.point()) < problem.loss(x0) - 1
