"""Optimizers inside: what must not depend on the space, stacks, what is kept, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import projcore
from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LBFGS, LR, Adam, HeavyBall, StrongWolfe
from projcore.projections import (
    DCT,
    Daubechies,
    Fourier,
    Haar,
    Hadamard,
    VectorProjection,
)

Make = Callable[..., Any]

KINDS: dict[str, Make] = {
    "hartley": Fourier,
    "half": lambda modules, **others: Fourier(modules, form="half", **others),
    "dct": DCT,
    "hadamard": Hadamard,
    "signs": lambda modules, **others: Hadamard(modules, signs=3, **others),
    "haar": Haar,
    "db3": lambda modules, **others: Daubechies(modules, order=3, **others),
}
PADDED: dict[str, Make] = {
    "padded": lambda modules, **others: Fourier(modules, pad=True, **others),
    "padded half": lambda modules, **others: Fourier(modules, form="half", pad=True, **others),
}
SHAPES = [(), (1,), (13,), (7, 1), (11, 101), (3, 4, 5), (2, 3, 3, 3), (2, 1, 3, 2, 5)]


class Count(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def train(modules: list[Any], shapes: list[tuple[int, ...]], steps: int = 20) -> list[Tensor]:
    """Returns the parameters after steps on a quadratic function."""
    params = [torch.nn.Parameter(draw(shape, i)) for i, shape in enumerate(shapes)]
    curvatures = [1 + draw(shape, i + 50).square() for i, shape in enumerate(shapes)]
    optimizer = Optimizer(params, *modules)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((c * p.square()).sum() for c, p in zip(curvatures, params, strict=True))
        loss.backward()
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("kind", [*KINDS, *PADDED])
def test_gradient_descent_with_momentum_is_as_outside(kind: str) -> None:
    make = {**KINDS, **PADDED}[kind]
    expected = train([HeavyBall(0.9), LR(1e-2)], SHAPES)
    actual = train([make([HeavyBall(0.9)]), LR(1e-2)], SHAPES)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def convex(point: Tensor) -> Tensor:
    """A convex function whose elements are coupled; its Hessian's condition is about 50."""
    steps = point.diff()
    return (0.5 * point.square() + point.exp() - 2 * point).sum() + 5 * steps.square().sum()


def minimize(modules: list[Any], steps: int) -> list[float]:
    points = [torch.nn.Parameter(draw((5, 8), 1)), torch.nn.Parameter(draw((23,), 2))]
    optimizer = Optimizer(points, *modules)

    def closure(backward: bool = True) -> Tensor:
        optimizer.zero_grad()
        loss = convex(torch.cat([point.flatten() for point in points]))
        if backward:
            loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


@pytest.mark.parametrize("kind", ["hartley", "half", "dct", "haar", "padded"])
@pytest.mark.parametrize("merged", [False, True])
def test_lbfgs_with_a_line_search_converges_as_outside(kind: str, merged: bool) -> None:
    modules = [LBFGS(), StrongWolfe()]
    inner = {**KINDS, **PADDED}[kind](modules)
    outside = minimize([VectorProjection(modules)] if merged else modules, 40)
    inside = minimize([VectorProjection([inner])] if merged else [inner], 40)
    # The length of the first step is of the gradient's elements, so they differ on the way.
    least = min(outside + inside)

    def steps(losses: list[float]) -> int:
        return next(i for i, loss in enumerate(losses) if loss < least + 1e-8)

    assert abs(steps(inside) - steps(outside)) <= 4


def gradients(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for i, param in enumerate(params):
        param.grad = draw(param.shape, i, torch.float32)
    return params


@pytest.mark.parametrize("kind", [*KINDS, *PADDED])
def test_tensors_of_one_shape_are_transformed_in_a_handful_of_calls(kind: str) -> None:
    make = {**KINDS, **PADDED}[kind]

    made = make([LR(1.0)])

    def count(tensors: int) -> int:
        given = [draw((11, 9), i, torch.float32) for i in range(tensors)]
        states = [made.init(tensor, {}) for tensor in given]
        facts = (given, None, None, states, [{}] * tensors, "update")
        made.unproject(made.project(given, *facts), *facts)  # makes tables that are kept
        with Count() as calls:
            made.unproject(made.project(given, *facts), *facts)
        return calls.count

    one, many = count(1), count(2000)
    assert many < one + 8  # stacked and unstacked
    assert many < 150  # levels of a pyramid and of a half spectrum are several calls each


@pytest.mark.parametrize("kind", [*KINDS, *PADDED])
@pytest.mark.parametrize("size", [1, 40, 10**6])
def test_stacked_equals_looped(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make = {**KINDS, **PADDED}[kind]
    shapes = [(7, 5), (6,), (7, 5), (6, 2), (6,), (7, 5), ()]

    def step(params: list[torch.nn.Parameter]) -> list[Tensor]:
        Optimizer(params, make([Adam()]), LR(0.1)).step()
        return [param.detach() for param in params]

    expected = [step([param])[0] for param in gradients(shapes)]
    monkeypatch.setattr("projcore_spectral._spectral.STACK", size)
    torch.testing.assert_close(step(gradients(shapes)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "count"), [(1, 1), (3, 3), (4, 4), (99, 8), (0.5, 4), (0.01, 1)])
def test_what_is_kept_is_of_the_given_size(kind: str, keep: float, count: int) -> None:
    param = torch.nn.Parameter(torch.zeros(8, 2))
    made = KINDS[kind]([LR(1.0)], keep=keep, dims=(0,))
    state = made.init(param, {})
    (z,) = made.project([draw((8, 2))], [param], None, None, [state], [{}], "update")
    assert z.shape == (count, 2)
    (x,) = made.unproject([z], [param], None, None, [state], [{}], "update")
    (again,) = made.project([x], [param], None, None, [state], [{}], "update")
    torch.testing.assert_close(again, z)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "signs"])
@pytest.mark.parametrize("length", [13, 16])
def test_a_constant_is_in_every_low_pass(kind: str, length: int) -> None:
    if kind in ("hadamard", "haar", "db3") and length == 13:
        pytest.skip("what is split or carried has constants of its own")
    param = torch.nn.Parameter(torch.zeros(length, length, dtype=torch.float64))
    param.grad = torch.ones_like(param)
    Optimizer([param], KINDS[kind]([LR(1.0)], keep=5)).step()
    torch.testing.assert_close(param.detach(), -torch.ones_like(param))


@pytest.mark.parametrize("make", [Fourier, DCT])
def test_a_low_pass_keeps_slow_waves_and_drops_fast_ones(make: Make) -> None:
    places = torch.arange(64, dtype=torch.float64) * torch.pi / 32 + torch.pi / 64
    for form in ("hartley", "half") if make is Fourier else (None,):
        others = {} if form is None else {"form": form}
        slow, fast = torch.cos(2 * places), torch.cos(30 * places)
        param = torch.nn.Parameter(torch.zeros(64, dtype=torch.float64))
        param.grad = slow + fast
        Optimizer([param], make([LR(1.0)], keep=0.5, **others)).step()
        torch.testing.assert_close(param.detach(), -slow)


def test_a_low_pass_leaves_what_it_does_not_keep() -> None:
    # A closure inside is evaluated on the plane through the point, so nothing is rounded away.
    point = torch.nn.Parameter(draw((16,), 3))
    start = point.detach().clone()
    optimizer = Optimizer([point], Fourier([LBFGS(), StrongWolfe()], keep=5))

    def closure(backward: bool = True) -> Tensor:
        optimizer.zero_grad()
        loss = convex(point)
        if backward:
            loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(15)]
    spectrum = torch.fft.rfft(point.detach() - start)
    assert spectrum[3:].abs().max() < 1e-12
    assert losses[-1] < losses[0] - 1
    gradient = torch.autograd.grad(convex(point), point)[0]
    assert torch.fft.rfft(gradient)[:3].abs().max() < 1e-4


def test_tensors_without_a_dimension_pass() -> None:
    params = gradients([(4, 4), (4,), ()])
    described = Optimizer(params, DCT([LR(0.1)], dims=(0, 1)))
    described.step()
    expected = [-0.1 * param.grad for param in params if param.grad is not None]
    torch.testing.assert_close([param.detach() for param in params], expected)
    with pytest.raises(ArgumentError, match="applies to none"):
        Optimizer(gradients([(4,)]), DCT([LR(0.1)], dims=(0, 1)))


def test_a_spec_is_the_projection() -> None:
    for spec in ("fourier([adam()], form='half', keep=3)", "dct([adam()], dims=(0, -1))"):
        assert str(projcore.build(spec)) == spec


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Fourier([LR(1.0)], form="quarter"),
            ArgumentError,
            r"form='quarter'.*hartley, half",
        ),
        (lambda: Fourier([LR(1.0)], keep=3, pad=True), ArgumentError, r"keep=3, pad=True"),
        (lambda: DCT([LR(1.0)], keep=0), ArgumentError, r"keep=0"),
        (lambda: DCT([LR(1.0)], keep=1.5), ArgumentError, r"keep=1.5"),
        (lambda: DCT([LR(1.0)], keep=float("nan")), ArgumentError, r"keep=nan"),
        (lambda: DCT([LR(1.0)], keep="low"), ArgumentTypeError, r"keep='low'"),
        (lambda: DCT([LR(1.0)], keep=True), ArgumentTypeError, r"keep=True"),
        (lambda: Haar([LR(1.0)], levels=0), ArgumentError, r"levels=0"),
        (lambda: Daubechies([LR(1.0)], order=9), ArgumentError, r"order=9"),
        (lambda: Hadamard([LR(1.0)], signs=-1), ArgumentError, r"signs=-1"),
        (lambda: Haar([LR(1.0)], dims=()), ArgumentTypeError, r"dims=\(\)"),
        (lambda: Haar([LR(1.0)], dims=(0.5,)), ArgumentTypeError, r"dims=\(0.5,\)"),
        (lambda: Haar([LR(1.0)], dims=(1, 1)), ArgumentError, r"dims=\(1, 1\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
