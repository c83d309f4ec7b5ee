"""Methods with several points for each parameter: their formulas, and what is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, EMANesterov, HeavyBall, Lookahead, PolyakAveraging, ScheduleFree
from projcore.projections import VectorProjection
from projcore_basic import averaged, averages

STEPS = 60
# The parameter after a step, and the point to evaluate at.
Pair = tuple[Tensor, Tensor]


def gradient(point: Tensor, step: int) -> Tensor:
    return (point + step).sin() + 0.1 * point


def rate(step: int) -> float:
    """A warmup from zero, and then less."""
    return 0.02 * step if step < 10 else 0.1


def schedule_free(start: Tensor, beta: float) -> Callable[[int, Tensor, float], Pair]:
    """Equations 3 to 5 of the paper, by all three of their points."""
    x, z, largest, total = start.clone(), start.clone(), 0.0, 0.0

    def step(number: int, grad: Tensor, lr: float) -> Pair:
        nonlocal x, z, largest, total
        largest = max(largest, lr)
        total += largest**2
        c = largest**2 / total if total else 0.0
        z = z - lr * grad
        x = (1 - c) * x + c * z
        return (1 - beta) * z + beta * x, x

    return step


def lookahead(start: Tensor, alpha: float, period: int) -> Callable[[int, Tensor, float], Pair]:
    fast, slow = start.clone(), start.clone()

    def step(number: int, grad: Tensor, lr: float) -> Pair:
        nonlocal fast, slow
        fast = fast - lr * grad
        if (number + 1) % period == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        return fast, slow

    return step


def ema_nesterov(start: Tensor, gamma: float, beta: float) -> Callable[[int, Tensor, float], Pair]:
    x, p, mean = start.clone(), start.clone(), torch.zeros_like(start)

    def step(number: int, grad: Tensor, lr: float) -> Pair:
        nonlocal x, p, mean
        new = p - lr * grad
        mean = beta * mean + (1 - beta) * (new - x)
        x, p = new, new + gamma * mean
        return p, x

    return step


CASES: dict[str, tuple[Callable[[], list[Any]], Callable[[Tensor], Any]]] = {
    "schedule free": (lambda: [ScheduleFree(0.1, 0.8)], lambda p: schedule_free(p, 0.8)),
    "lookahead": (lambda: [LR(0.1), Lookahead(0.3, 4)], lambda p: lookahead(p, 0.3, 4)),
    "lookahead each step": (lambda: [LR(0.1), Lookahead(1.0, 1)], lambda p: lookahead(p, 1.0, 1)),
    "ema nesterov": (lambda: [LR(0.1), EMANesterov(0.7, 0.9)], lambda p: ema_nesterov(p, 0.7, 0.9)),
}
PLACES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "bare": list,
    "vector": lambda modules: [VectorProjection(modules)],
}


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2, 2, 7, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CASES)
def test_60_steps_and_what_is_evaluated(name: str, place: str) -> None:
    make, method = CASES[name]
    weight = start().requires_grad_()
    optimizer = Optimizer([weight], *PLACES[place](make()))
    step = method(start())
    for number in range(STEPS):
        optimizer.param_groups[0]["lr"] = lr = rate(number)
        grad = gradient(weight.detach(), number)
        weight.grad = grad
        optimizer.step()
        expected, point = step(number, grad, lr)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(averages(optimizer)[weight], point, rtol=1e-12, atol=1e-12)
        with averaged(optimizer):
            torch.testing.assert_close(weight.detach(), point, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    weight = start(dtype).requires_grad_()
    optimizer = Optimizer([weight], *CASES[name][0]())
    for number in range(20):
        optimizer.param_groups[0]["lr"] = 0.1
        weight.grad = gradient(weight.detach(), number)
        optimizer.step()
    kept = weight.detach().clone()
    with averaged(optimizer):
        assert weight.isfinite().all()
    torch.testing.assert_close(weight.detach(), kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_before_the_first_step_it_is_the_parameter(name: str) -> None:
    weight = start().requires_grad_()
    optimizer = Optimizer([weight], *CASES[name][0]())
    torch.testing.assert_close(averages(optimizer)[weight], weight.detach(), rtol=0, atol=0)


def test_a_lookahead_that_changes() -> None:
    """As at the end of training: with 0, the parameter is the point."""
    weight = start().requires_grad_()
    optimizer = Optimizer([weight], LR(0.1), EMANesterov(0.5, 0.9))
    point, mean, ahead = start(), torch.zeros(7, dtype=torch.float64), 0.0
    for number, now in enumerate([0.0, 0.5, 0.3, 0.0]):
        optimizer.param_groups[0]["lookahead"] = now
        weight.grad = gradient(weight.detach(), number)
        new = point + ahead * mean - 0.1 * weight.grad
        mean, point, ahead = 0.9 * mean + 0.1 * (new - point), new, now
        optimizer.step()
        expected = point + ahead * mean
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(averages(optimizer)[weight], point, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weight.detach(), point, rtol=1e-12, atol=1e-12)


def test_with_a_constant_rate_it_is_the_mean_of_the_points() -> None:
    weight = start().requires_grad_()
    optimizer = Optimizer([weight], ScheduleFree(0.1, 0.5))
    points, point = [], start()
    for number in range(5):
        grad = gradient(weight.detach(), number)
        point = point - 0.1 * grad
        points.append(point)
        weight.grad = grad
        optimizer.step()
    mean = torch.stack(points).mean(0)
    torch.testing.assert_close(averages(optimizer)[weight], mean, rtol=1e-12, atol=1e-12)


def test_several_averages_are_an_error() -> None:
    weight = start().requires_grad_()
    optimizer = Optimizer([weight], HeavyBall(0.9), LR(0.1), Lookahead(), PolyakAveraging())
    weight.grad = start()
    optimizer.step()
    with pytest.raises(ArgumentError, match="must have one, of its own"):
        averages(optimizer)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ScheduleFree(-1.0), "lr"),
        (lambda: ScheduleFree(0.1, 1.0), "beta"),
        (lambda: ScheduleFree(0.1, 0.0), "beta"),
        (lambda: Lookahead(1.5), "alpha"),
        (lambda: Lookahead(0.5, 0), "period"),
        (lambda: EMANesterov(-0.1), "lookahead"),
        (lambda: EMANesterov(0.5, 1.0), "beta"),
    ],
)
def test_values_out_of_range(make: Callable[[], Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        make()
    with pytest.raises(ArgumentTypeError, match="period"):
        Lookahead(0.5, 2.0)  # type: ignore[arg-type]
