"""Recipes against their published formulas, written out: every basis and every residual is formed.

The references know a matrix with its shorter side first: what is compressed from the right is
handed to them transposed. Random matrices, and the bases of SUMO, come from the same functions as
in the package, by the same keys, so that nothing but the algorithm is compared. Sums are made in
another order, and 120 steps of a nonlinear problem carry the rounding on, by a factor of some 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore_lowrank import recipes
from projcore_lowrank._seeded import choices, gaussian, mix, uniform_columns
from projcore_lowrank._subspace import dominant

# Takes a gradient, gives the update without decay and learning rate.
Reference = Generator[Any, Tensor, None]
# Makes a basis of that before, a gradient, the step, and the place and the end of the matrix.
Turn = Callable[[Tensor, Tensor, int, int, bool], Tensor]

STEPS, PERIOD, RANK, SEED = 120, 25, 2, 3
RATE, DECAY = 0.02, 0.1
SHAPES = [(5, 5), (5, 8), (8, 3), (5,)]  # square, m < n, m > n; a vector
INDEX = {(5, 5): 0, (5, 8): 1, (8, 3): 2}

random = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, dtype=torch.float64, generator=random)
TARGETS = torch.randn(40, 3, dtype=torch.float64, generator=random)
START = [torch.randn(shape, dtype=torch.float64, generator=random) / 2 for shape in SHAPES]


def gradients(points: list[Tensor]) -> list[Tensor]:
    square, wide, tall, bias = leaves = [p.detach().clone().requires_grad_() for p in points]
    hidden = torch.tanh(torch.tanh(INPUTS @ square + bias) @ wide)
    loss = (hidden @ tall - TARGETS).square().mean()
    return list(torch.autograd.grad(loss, leaves))


# What the methods are made of.


class Moments:
    """The two moments of Adam, and three ways to divide the first by the root of the second."""

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps, self.count = betas, eps, 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def _take(self, gradient: Tensor) -> tuple[float, float]:
        one, two = self.betas
        self.count += 1
        self.first = one * self.first + (1 - one) * gradient
        self.second = two * self.second + (1 - two) * gradient * gradient
        return 1 - one**self.count, 1 - two**self.count

    def corrected(self, gradient: Tensor) -> Tensor:
        one, two = self._take(gradient)
        return (self.first / one) / ((self.second / two).sqrt() + self.eps)

    def raw(self, gradient: Tensor) -> Tensor:
        self._take(gradient)
        return self.first / (self.second.sqrt() + self.eps)

    def hat(self, gradient: Tensor) -> Tensor:
        return self.raw(gradient) * self.factor

    def carry(self, change: Tensor) -> None:
        """Takes both to another basis, the second as variances."""
        one, two = (1 - beta**self.count for beta in self.betas)
        mean, square = self.first / one, self.second / two
        carried = change**2 @ (square - mean**2) + (change @ mean) ** 2
        self.first, self.second = change @ self.first, two * carried.abs()

    @property
    def factor(self) -> float:
        one, two = self.betas
        return math.sqrt(1 - two**self.count) / (1 - one**self.count)


class Factored:
    """Adafactor without a learning rate: means of squares by row and column, clipped at 1."""

    def __init__(self, decay: float, eps: float) -> None:
        self.decay, self.eps, self.count = decay, eps, 0
        self.rows: Any = 0.0
        self.columns: Any = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        self.count += 1
        beta = 1 - self.count**self.decay
        squares = gradient * gradient
        if gradient.ndim == 1:
            self.rows = beta * self.rows + (1 - beta) * squares
            variance = self.rows
        else:
            self.rows = beta * self.rows + (1 - beta) * squares.mean(1)
            self.columns = beta * self.columns + (1 - beta) * squares.mean(0)
            variance = torch.outer(self.rows, self.columns) / self.rows.mean()
        scaled = gradient / variance.clamp(min=self.eps**2).sqrt()
        return scaled / max(1.0, float(scaled.square().mean().sqrt()))


class Limiter:
    """The norm may grow by a factor of 1.01 in a step."""

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, scaled: Tensor) -> Tensor:
        norm = float(scaled.norm())
        divisor = 1.0
        if self.before is not None:
            divisor = max(norm / (self.before + 1e-8), 1.01) / 1.01
        self.before = norm / divisor
        return scaled / divisor


def singular_vectors(full: Tensor, right: bool) -> Tensor:
    """Of the gradient as it lies, as the signs of its vectors depend on that."""
    if right:
        return torch.linalg.svd(full.T, full_matrices=False).Vh[:RANK].T
    return torch.linalg.svd(full, full_matrices=False).U[:, :RANK]


def normal(key: int, side: int, rank: int, right: bool) -> Tensor:
    shape = (rank, side) if right else (side, rank)
    drawn = (gaussian(key, shape) / math.sqrt(rank)).double()
    return drawn.T if right else drawn


# The methods. Each begins with a first gradient, which is sent in; `index` is that of its matrix.


def vector_adam(form: str, betas: tuple[float, float], eps: float) -> Reference:
    moments = Moments(betas, eps)
    update = None
    while True:
        gradient = yield update
        update = getattr(moments, form)(gradient)


def vector_adafactor(beta: float) -> Reference:
    adafactor = Factored(-0.8, 1e-15)
    update, momentum = None, 0.0
    while True:
        gradient = yield update
        momentum = update = beta * momentum + (1 - beta) * adafactor(gradient)


def galore_adamw(index: int, right: bool) -> Reference:
    moments = Moments((0.8, 0.95), 1e-6)
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            basis = singular_vectors(full, right)
        update = 0.5 * basis @ moments.hat(basis.T @ full)


def galore_adafactor(index: int, right: bool) -> Reference:
    adafactor = Factored(-0.8, 1e-15)
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            basis = singular_vectors(full, right)
        update = 0.5 * basis @ adafactor(basis.T @ full)


def fira(index: int, right: bool) -> Reference:
    moments, limited = Moments((0.8, 0.95), 1e-6), Limiter()
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            basis = singular_vectors(full, right)
        low = basis.T @ full
        out = moments.raw(low)
        rest = full - 0.5 * basis @ low
        for j in range(full.shape[1]):
            rest[:, j] *= out[:, j].norm() / (low[:, j].norm() + 1e-8)
        update = (0.5 * basis @ out + limited(rest)) * moments.factor


def apollo(index: int, right: bool) -> Reference:
    moments, limited = Moments((0.8, 0.95), 1e-6), Limiter()
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            key = mix(SEED, index, step // PERIOD + 1)
            basis = normal(key, full.shape[0], RANK, right)
        low = basis.T @ full
        out = moments.raw(low)
        scaled = full.clone()
        for j in range(full.shape[1]):
            scaled[:, j] *= out[:, j].norm() / (low[:, j].norm() + 1e-8)
        update = 0.5 * limited(scaled) * moments.factor  # the root of a scale of 0.25


def apollo_mini(index: int, right: bool) -> Reference:
    moments, limited = Moments((0.8, 0.95), 1e-6), Limiter()
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            key = mix(SEED, index, step // PERIOD + 1)
            basis = normal(key, full.shape[0], 1, right)
        low = basis.T @ full
        out = moments.raw(low)
        scaled = full * (out.norm() / (low.norm() + 1e-8))
        update = 3.0 * limited(scaled) * moments.factor  # the root of a scale of 9


def golore(index: int, right: bool) -> Reference:
    moments = Moments((0.8, 0.95), 1e-6)
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            key = mix(SEED, index, step // PERIOD + 1)
            new = uniform_columns(gaussian(key, (full.shape[0], RANK), torch.float64))
            if step:
                moments.first = new.T @ (basis @ moments.first)
            basis = new
        update = 0.5 * basis @ moments.hat(basis.T @ full)


def flora(index: int, right: bool) -> Reference:
    adafactor = Factored(-0.8, 1e-15)
    update, basis, momentum = None, torch.empty(0), torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        raw = adafactor(full)
        if step % PERIOD == 0:
            new = normal(mix(SEED, index, step // PERIOD + 1), full.shape[0], RANK, right)
            momentum = new.T @ (basis @ momentum) if step else 0 * new.T @ full
            basis = new
        update = (1 - 0.8) * raw + 0.8 * basis @ momentum
        momentum = 0.8 * momentum + (1 - 0.8) * basis.T @ raw


def frugal(index: int, right: bool) -> Reference:
    moments = Moments((0.8, 0.95), 1e-8)
    update = None
    chosen: list[int] = []
    for step in range(STEPS + 1):
        full = yield update  # handed over transposed, so its rows are the columns
        if step % PERIOD == 0:
            count, key = round(0.4 * full.shape[0]), mix(SEED, index, step // PERIOD)
            chosen = choices([key], count, full.shape[0])[0].tolist()
            moments = Moments((0.8, 0.95), 1e-8)  # begins anew, its count too
        basis = torch.eye(full.shape[0], dtype=full.dtype)[:, chosen]
        low = basis.T @ full
        rest = full - basis @ low
        update = basis @ moments.corrected(low) + 0.3 * rest.sign()


def dct_adamw(index: int, right: bool, error_feedback: bool, period: int) -> Reference:
    moments = Moments((0.8, 0.95), 1e-8)
    update, error = None, torch.zeros(())
    chosen: list[int] = []
    for step in range(STEPS + 1):
        full = (yield update) + error
        side = full.shape[0]
        cosines = torch.zeros(side, side, dtype=torch.float64)
        for i in range(side):
            for k in range(side):
                factor = math.sqrt((1 if k == 0 else 2) / side)
                cosines[i, k] = factor * math.cos(math.pi * (2 * i + 1) * k / (2 * side))
        if step % period == 0:
            sizes = (cosines.T @ full).abs().sum(1).tolist()
            chosen = sorted(sorted(range(side), key=lambda k: -sizes[k])[:RANK])
        basis = cosines[:, chosen]
        low = basis.T @ full
        if error_feedback:
            error = full - basis @ low
        update = basis @ moments.corrected(low)


def sumo(index: int, right: bool) -> Reference:
    update, basis, momentum, before = None, torch.empty(0), torch.empty(0), torch.inf
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            new = dominant(full, RANK, "randomized", seed=mix(step, right))
            momentum = (new.T @ basis) @ momentum if step else 0 * new.T @ full
            basis = new
        low = basis.T @ full
        momentum = 0.9 * momentum + low
        left, _, other = torch.linalg.svd(momentum, full_matrices=False)
        orthogonal = left @ other
        norm = float(orthogonal.norm())
        orthogonal *= min(1.0, 1.1 * before / norm)
        before = float(orthogonal.norm())
        update = full - basis @ (low - 0.5 * 0.2 * max(full.shape) ** 0.5 * orthogonal)


def recovering(index: int, right: bool, turn: Turn) -> Reference:
    """SubTrack++, GrassWalk and GrassJump: they differ in how the basis turns."""
    moments, limited = Moments((0.8, 0.95), EPS), Limiter()
    update, basis = None, torch.empty(0)
    for step in range(STEPS + 1):
        full = yield update
        if step % PERIOD == 0:
            new = turn(basis, full, step, index, right)
            if step:
                moments.carry(new.T @ basis)
            basis = new
        low = basis.T @ full
        out = moments.raw(low)
        rest = full - 0.5 * basis @ low
        for j in range(full.shape[1]):
            rest[:, j] *= out[:, j].norm() / (low[:, j].norm() + 1e-8)
        update = (0.5 * basis @ out + limited(rest)) * moments.factor


def along(basis: Tensor, tangent: Tensor, step: float, count: int) -> Tensor:
    """The geodesic, by the singular vectors of its tangent."""
    left, sizes, other = torch.linalg.svd(tangent, full_matrices=False)
    left, angles, other = left[:, :count], (step * sizes[:count]).clamp(max=math.pi / 2), other.T
    other = other[:, :count]
    ways = torch.cat([basis @ other, left], 1)
    amounts = torch.cat([angles.cos().diag(), angles.sin().diag()])
    eye = torch.eye(other.shape[0], dtype=basis.dtype)
    return ways @ amounts @ other.T + basis @ (eye - other @ other.T)


def subtrack(
    basis: Tensor, full: Tensor, step: int, index: int, right: bool, relative: bool = False
) -> Tensor:
    if not step:
        return torch.linalg.svd(full, full_matrices=False).U[:, :RANK]
    inside = torch.linalg.lstsq(basis, full).solution
    tangent = 2 * (full - basis @ inside) @ inside.T
    return along(basis, tangent, 0.7 / float(full.norm() ** 2) if relative else 30.0, 1)


def grasswalk(basis: Tensor, full: Tensor, step: int, index: int, right: bool) -> Tensor:
    if not step:
        return torch.linalg.svd(full, full_matrices=False).U[:, :RANK]
    side = full.shape[0]
    drawn = gaussian(mix(SEED, mix(step, right)), (side, RANK), torch.float64) / side**0.5
    tangent = (torch.eye(side, dtype=full.dtype) - basis @ basis.T) @ drawn
    return along(basis, tangent, 0.3, RANK)


def grassjump(basis: Tensor, full: Tensor, step: int, index: int, right: bool) -> Tensor:
    key = mix(SEED, index, step // PERIOD + 1)
    return uniform_columns(gaussian(key, (full.shape[0], RANK), torch.float64))


def alice(index: int, right: bool, beta: float) -> Reference:
    moments, limited = Moments((0.8, 0.95), 1e-8), Limiter()
    update, basis = None, torch.empty(0)
    tracked = torch.zeros(RANK, RANK, dtype=torch.float64)
    energies: Any = 0.0
    for step in range(STEPS + 1):
        full = yield update
        side = full.shape[0]
        if step % PERIOD == 0:
            if step:
                mean = beta * basis @ tracked @ basis.T + (1 - beta) * full @ full.T
                found = with_positive_diagonal(mean @ basis)
                leading = found @ torch.linalg.eigh(found.T @ mean @ found).eigenvectors[:, -1:]
            else:
                leading = torch.linalg.svd(full, full_matrices=False).U[:, :1]
            drawn = gaussian(mix(SEED, step), (side, RANK - 1), torch.float64)
            new = with_positive_diagonal(torch.cat([leading, drawn], 1))
            if step:
                change = new.T @ basis
                tracked = change @ tracked @ change.T
            basis = new
        low = basis.T @ full
        tracked = beta * tracked + (1 - beta) * low @ low.T
        out = moments.raw(low)
        rest = full - basis @ low
        energies = 0.8 * energies + 0.2 * (rest**2).sum(0)
        scaled = math.sqrt(side - RANK) * rest / (energies.sqrt() + 1e-8)
        update = 0.5 * (basis @ out + 0.3 * limited(scaled))


def with_positive_diagonal(columns: Tensor) -> Tensor:
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()


ADAM = {"betas": (0.8, 0.95)}
# So large that rounding is not blown up where a variance happens to be about zero.
EPS = 1e-3
ROUGH = {**ADAM, "eps": EPS}
GALORE = {"rank": RANK, "period": PERIOD, "scale": 0.5}
DRAWN = {"period": PERIOD, "seed": SEED}
DECAYED = {"weight_decay": DECAY}
HAT = (vector_adam, ("hat", (0.8, 0.95), 1e-6))
CORRECTED = (vector_adam, ("corrected", (0.8, 0.95), 1e-8))

# A name, options of the recipe, the reference for matrices and its own, and that for vectors.
CASES: dict[str, tuple[str, dict[str, Any], Callable[..., Reference], dict[str, Any], Any]] = {
    "galore_adamw": ("galore_adamw", {**ADAM, **GALORE, **DECAYED}, galore_adamw, {}, HAT),
    "galore_adafactor": (
        "galore_adafactor",
        {**GALORE, **DECAYED},
        galore_adafactor,
        {},
        (vector_adafactor, (0.0,)),
    ),
    "fira": ("fira", {**ADAM, **GALORE, **DECAYED}, fira, {}, HAT),
    "apollo": (
        "apollo",
        {**ADAM, **DRAWN, **DECAYED, "rank": RANK, "scale": 0.25},
        apollo,
        {},
        HAT,
    ),
    "apollo_mini": (
        "apollo_mini",
        {**ADAM, **DRAWN, **DECAYED, "scale": 9.0},
        apollo_mini,
        {},
        HAT,
    ),
    "golore": ("golore", {**ADAM, **GALORE, **DECAYED, "seed": SEED}, golore, {}, HAT),
    "flora": ("flora", {**DRAWN, "rank": RANK, "beta": 0.8}, flora, {}, (vector_adafactor, (0.8,))),
    "frugal": (
        "frugal",
        {**ADAM, **DRAWN, **DECAYED, "density": 0.4, "residual_scale": 0.3},
        frugal,
        {},
        CORRECTED,
    ),
    **{
        f"dct_adamw({error_feedback}, {period})": (
            "dct_adamw",
            {**ADAM, **DECAYED, "rank": RANK, "error_feedback": error_feedback, "period": period},
            dct_adamw,
            {"error_feedback": error_feedback, "period": period},
            CORRECTED,
        )
        for error_feedback in (False, True)
        for period in (1, 7)
    },
    **{
        f"subtrack({relative})": (
            "subtrack",
            {**ROUGH, **GALORE, **DECAYED, "step": 0.7 if relative else 30.0, "relative": relative},
            recovering,
            {"turn": partial(subtrack, relative=relative)},
            (vector_adam, ("hat", (0.8, 0.95), EPS)),
        )
        for relative in (False, True)
    },
    "grasswalk": (
        "grasswalk",
        {**ROUGH, **GALORE, **DECAYED, "step": 0.3, "seed": SEED},
        recovering,
        {"turn": grasswalk},
        (vector_adam, ("hat", (0.8, 0.95), EPS)),
    ),
    "grassjump": (
        "grassjump",
        {**ROUGH, **GALORE, **DECAYED, "seed": SEED},
        recovering,
        {"turn": grassjump},
        (vector_adam, ("hat", (0.8, 0.95), EPS)),
    ),
    **{
        f"alice({beta})": (
            "alice",
            {
                **GALORE,
                **DECAYED,
                "betas": (0.8, 0.95, beta),
                "leading": 1,
                "residual_scale": 0.3,
                "seed": SEED,
            },
            alice,
            {"beta": beta},
            (vector_adam, ("raw", (0.8, 0.95), 1e-8)),
        )
        for beta in (0.0, 0.9)
    },
    "sumo": (
        "sumo",
        {**ADAM, **GALORE, **DECAYED, "momentum": 0.9},
        sumo,
        {},
        CORRECTED,
    ),
}


def distance(recipe: str, options: dict[str, Any], make: Any, own: Any, vector: Any) -> float:
    """Runs a recipe beside its reference; returns the largest relative distance of all steps."""
    params = [Parameter(start.clone()) for start in START]
    optimizer = getattr(recipes, recipe)(params, lr=RATE, **options)
    points = [start.clone() for start in START]
    made: list[tuple[bool, Reference]] = []
    for shape in SHAPES:
        right = len(shape) > 1 and (shape[0] >= shape[-1] or recipe == "frugal")
        if len(shape) == 1:
            made.append((right, vector[0](*vector[1])))
        else:
            made.append((right, make(INDEX[shape], right, **own)))
        next(made[-1][1])
    largest = 0.0
    for _ in range(STEPS):
        for param, gradient in zip(params, gradients(params), strict=True):
            param.grad = gradient
        optimizer.step()
        for i, ((right, reference), gradient) in enumerate(
            zip(made, gradients(points), strict=True)
        ):
            update = reference.send(gradient.T if right else gradient)
            update = update.T if right else update
            decay = options.get("weight_decay", 0.0)
            points[i] = points[i] * (1 - RATE * decay) - RATE * update
            gap = (points[i] - params[i].detach()).norm() / points[i].norm()
            largest = max(largest, float(gap))
    for point, start in zip(points, START, strict=True):
        assert (point - start).norm() > 0.1 * start.norm()
    return largest


@pytest.mark.parametrize("case", CASES)
def test_recipes_are_the_published_formulas(case: str) -> None:
    assert distance(*CASES[case]) < 1e-11  # 5e-14 was found
