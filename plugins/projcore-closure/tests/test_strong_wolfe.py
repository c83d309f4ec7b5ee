from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, NeedsError, StepError
from projcore.modules import LBFGS, Backtracking, StrongWolfe
from projcore.projections import To, VectorProjection
from projcore_closure._line_search import Trial
from projcore_closure.strong_wolfe import between, beyond, cubic_minimum, strong_wolfe


class Function:
    """A smooth random function that falls at 0 and is bounded below; it counts its evaluations."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.scale = 10 ** self.random.uniform(-4, 4)
        self.waves = self.random.normal(size=(4, 3)) * [0.7, 2.0, 3.0]
        self.minimum = self.random.uniform(0.3, 3)
        self.power = self.random.choice([2, 4])
        self.calls = 0
        if self.slope(0.0) >= 0:
            self.waves[:, 0] *= -1
            self.minimum += 10

    def value(self, step: float) -> float:
        x = step / self.scale
        waves = sum(a * math.sin(b * x + c) for a, b, c in self.waves)
        return (x - self.minimum) ** self.power + waves

    def slope(self, step: float) -> float:
        x = step / self.scale
        waves = sum(a * b * math.cos(b * x + c) for a, b, c in self.waves)
        return (self.power * (x - self.minimum) ** (self.power - 1) + waves) / self.scale

    def __call__(self, step: float) -> Trial:
        self.calls += 1
        return Trial(step, self.value(step), self.slope(step))


def holds(function: Function, step: float, c1: float, c2: float) -> bool:
    fall = function.value(step) <= function.value(0) + c1 * step * function.slope(0)
    return fall and abs(function.slope(step)) <= c2 * abs(function.slope(0))


@pytest.mark.parametrize(("c1", "c2"), [(1e-4, 0.9), (1e-4, 0.1), (0.1, 0.4), (0.3, 0.31)])
def test_conditions_hold_on_random_functions(c1, c2):
    most = 0
    for seed in range(300):
        function = Function(seed)
        start, function.calls = function(0.0), 0
        step = strong_wolfe(function, start, 1.0, c1, c2)
        assert step > 0, seed
        assert holds(function, step, c1, c2), seed
        most = max(most, function.calls)
    assert most <= 25


@pytest.mark.filterwarnings("ignore:The line search algorithm did not converge")
@pytest.mark.parametrize(("c1", "c2"), [(1e-4, 0.9), (0.1, 0.4)])
def test_finds_a_step_wherever_scipy_does(c1, c2):
    found = 0
    for function in map(Function, range(100)):
        theirs = scipy_step(function, c1, c2)
        if theirs is None:
            continue
        found += 1
        assert holds(function, theirs, c1, c2)
        assert holds(function, strong_wolfe(function, function(0.0), 1.0, c1, c2), c1, c2)
    assert found > 60


def scipy_step(function: Function, c1: float, c2: float) -> float | None:
    return scipy.optimize.line_search(
        lambda x: function.value(x[0]),
        lambda x: np.array([function.slope(x[0])]),
        np.zeros(1),
        np.ones(1),
        c1=c1,
        c2=c2,
        maxiter=30,
    )[0]


def test_a_parabola_needs_two_evaluations():
    for minimum in (0.02, 0.5, 3.0, 9.0):
        calls = []

        def parabola(step, minimum=minimum, calls=calls):
            calls.append(step)
            return Trial(step, (step - minimum) ** 2, 2 * (step - minimum))

        start = Trial(0.0, minimum**2, -2 * minimum)
        assert abs(strong_wolfe(parabola, start, 1.0, c2=0.01) - minimum) < 0.1 * max(1, minimum)
        assert len(calls) <= (4 if minimum == 0.02 else 2)


def test_cubic_minimum():
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        cubic = np.polynomial.Polynomial(generator.normal(size=4))
        ends = generator.normal(size=2)
        one, other = (Trial(a, cubic(a), cubic.deriv()(a)) for a in ends)
        roots = cubic.deriv().roots()
        expected = [r.real for r in roots if abs(r.imag) < 1e-9 and cubic.deriv(2)(r.real) > 0]
        if not expected:
            assert cubic_minimum(one, other) is None
            continue
        found += 1
        assert cubic_minimum(one, other) == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
    assert found > 100


def test_cubic_minimum_of_what_has_none():
    assert cubic_minimum(Trial(0, 0, -1), Trial(1, -1, -1)) is None  # a straight line
    assert cubic_minimum(Trial(0, 0, -1), Trial(1, math.inf, math.nan)) is None
    assert cubic_minimum(Trial(0, 0, -1e200), Trial(1, 1e300, 1e200)) is None


@pytest.mark.parametrize("edge", [1.5, 0.1, 3e-5])
def test_what_is_not_finite_shortens_the_step(edge):
    """A barrier at the edge; beyond it there is no value."""

    def barrier(step):
        if step >= edge:
            return Trial(step, math.inf, math.nan)
        return Trial(
            step, -step / edge - 0.1 * math.log(1 - step / edge), -1 / edge + 0.1 / (edge - step)
        )

    start = barrier(0.0)
    step = strong_wolfe(barrier, start, 1.0, c2=0.5)
    assert 0 < step < edge
    assert barrier(step).value <= start.value + 1e-4 * step * start.slope
    assert abs(barrier(step).slope) <= 0.5 * abs(start.slope)


def test_an_endless_fall_takes_the_farthest_step():
    steps = []

    def line(step):
        steps.append(step)
        return Trial(step, -step, -1.0)

    assert strong_wolfe(line, Trial(0.0, 0.0, -1.0), 1.0, max_evaluations=6) == steps[-1] == 1e5
    assert len(steps) == 6


def test_without_a_step_the_result_is_zero():
    calls = []

    def rise(step):  # the slope at 0 is a lie
        calls.append(step)
        return Trial(step, step, 1.0)

    assert strong_wolfe(rise, Trial(0.0, 0.0, -1.0), 1.0, max_evaluations=7) == 0.0
    assert len(calls) == 7
    calls.clear()
    assert strong_wolfe(rise, Trial(0.0, 0.0, -1.0), 1.0, min_width=0.3) == 0.0
    assert len(calls) < 5


def test_gives_the_best_step_if_it_runs_out():
    for seed in range(300):
        for count in (1, 2, 3, 4, 5):
            function, tried = Function(seed), [0.0]
            start = function(0.0)

            def evaluate(step, function=function, tried=tried):
                tried.append(step)
                return function(step)

            step = strong_wolfe(evaluate, start, 1.0, 0.1, 1e-3, max_evaluations=count)
            assert len(tried) <= count + 1
            enough = [a for a in tried if function.value(a) <= start.value + 0.1 * a * start.slope]
            assert step == min(enough, key=function.value), seed


def test_steps_stay_where_they_should():
    """Beyond: 1 % to tenfold; between: a tenth of the width off the ends."""
    generator = np.random.default_rng(0)
    for _ in range(500):
        near, far = np.sort(generator.uniform(0, 3, size=2))
        one = Trial(near, generator.normal(), -abs(generator.normal()))
        other = Trial(far, one.value - abs(generator.normal()), generator.normal())
        left, right = near + 0.0999 * (far - near), far - 0.0999 * (far - near)
        assert left < between(one, other) < right
        assert left < between(other, one) < right
        falling = other._replace(slope=-abs(other.slope))
        assert far + 0.00999 * (far - near) < beyond(one, falling) <= 10 * far
    nothing = Trial(2.0, math.inf, math.nan)
    assert between(Trial(1.0, 0.0, -1.0), nothing) == 1.5


class Times(Module):
    """Multiplies the update by a number, or by one for each tensor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def step(self, update, objective, state):
        return [self.factor * tensor for tensor in update]


@pytest.mark.parametrize("place", ["bare", "vector", "to"])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 300.0])
def test_conditions_hold_after_a_step(make, place, factor):
    places: dict[str, Callable] = {
        "bare": lambda *modules: list(modules),
        "vector": lambda *modules: [VectorProjection(modules)],
        "to": lambda *modules: [To([VectorProjection(modules)], "float64")],
    }
    problem = make()
    modules = places[place](Times(factor), StrongWolfe(c1=0.1, c2=0.3))
    optimizer = Optimizer(problem.params, *modules)
    for _ in range(5):
        before = problem.point()
        loss = optimizer.step(problem.closure)
        old = [p.grad.clone() for p in problem.params]
        moved = torch._foreach_sub(problem.point(), before)
        fall = sum(float((g * d).sum()) for g, d in zip(old, moved, strict=True))
        new_loss = problem.closure()
        slope = sum(float((p.grad * d).sum()) for p, d in zip(problem.params, moved, strict=True))
        assert new_loss <= loss + 0.1 * fall + 1e-12
        assert abs(slope) <= 0.3 * abs(fall) + 1e-12


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize("factor", [-1.0, -1e-3])
def test_an_update_uphill_becomes_the_gradient(make, search, factor):
    uphill, downhill = make(), make()
    one = Optimizer(uphill.params, Times(factor), search())
    other = Optimizer(downhill.params, Times(-factor), search())
    for _ in range(5):
        assert one.step(uphill.closure) > uphill.loss(uphill.point())
        other.step(downhill.closure)
        for a, b in zip(uphill.params, downhill.params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_without_a_direction_nothing_moves_and_nothing_is_evaluated(make, search, factor):
    problem = make()
    before = problem.point()
    optimizer = Optimizer(problem.params, Times(factor), search())
    optimizer.step(problem.closure)
    for a, b in zip(problem.params, before, strict=True):
        assert torch.equal(a, b)
    assert problem.calls == 1


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize("gradient", [0.0, float("nan"), -1.0])
@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
def test_never_rises(search, gradient, beyond):
    """Whatever the gradient says, and where the loss is not finite at most points."""
    weight = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = Optimizer([weight], search(max_evaluations=8))
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        weight.grad = torch.full_like(weight, gradient)
        far = float((weight.detach() - torch.tensor([1.0, 2.0])).abs().sum())
        return torch.tensor(beyond if far > 0.3 else far)

    for _ in range(3):
        optimizer.step(closure)
        assert weight.tolist() == [1.0, 2.0]
    assert calls == (3 * 9 if gradient == -1.0 else 3)


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
def test_needs_a_closure_and_the_params(search):
    weight = Parameter(torch.ones(2))
    optimizer = Optimizer([weight], search())
    weight.grad = torch.ones(2)
    with pytest.raises(StepError, match="no closure"):
        optimizer.step()
    with pytest.raises(NeedsError, match="project_params=True"):
        VectorProjection([search()], project_params=False)
    with pytest.raises(NeedsError, match="project_grad=True"):
        VectorProjection([search()], project_grad=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"c1": 0.0},
        {"c1": 1.0},
        {"c2": 1.0},
        {"c2": 1e-5},
        {"c1": 0.95},
        {"max_evaluations": 0},
        {"max_evaluations": 2.5},
        {"step_size": 0.0},
        {"step_size": float("nan")},
        {"tolerance_change": -1.0},
    ],
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"StrongWolfe\("):
        StrongWolfe(**arguments)


def test_a_stalled_search_ends_early(make):
    """At the minimum, in float32, there is nothing to find: the tolerance ends the search."""
    problem = make(dtype=torch.float32)
    optimizer = Optimizer(problem.params, LBFGS(), StrongWolfe())
    for _ in range(40):
        optimizer.step(problem.closure)
    calls = problem.calls
    optimizer.step(problem.closure)
    assert problem.calls - calls < 20
