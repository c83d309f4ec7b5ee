"""Tasks that minimize functions of a few numbers, each hard for some optimizers.

The kinds are those of LightBench, HeavyBall's benchmark; the definitions are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from projcore_lab.tasks import Batch, Task, Validation

Formula = Callable[..., Tensor]  # of the parameters


class Window(NamedTuple):
    """The part of the plane that a picture of a function shows."""

    x: tuple[float, float]
    y: tuple[float, float]
    minimum: tuple[float, float]


@dataclass(frozen=True)
class Function:
    """A function to minimize; its minimum is 0.

    Attributes:
        formula: Of the parameters.
        start: The parameters at the beginning.
        goal: The value that counts as solved.
        description: What it is, in one line.
        draw: Returns the random numbers of a step, for a function with random gradients.
        training: For such a function, the one that is differentiated: of the parameter and these
            numbers.
        window: For a picture, if there are two parameters of one element.
    """

    formula: Formula
    start: tuple[Tensor, ...]
    goal: float
    description: str
    draw: Callable[[torch.Generator], Tensor] | None = None
    training: Callable[[Tensor, Tensor], Tensor] | None = None
    window: Window | None = None


class FunctionTask(Task):
    """Minimizes a function in float64; the seed affects only the noise of its gradients.

    Args:
        seed: Of the random numbers.
        name: Of the function.
    """

    steps = 500
    checks = 250
    lr = 0.1
    inner = "adam"  # weight decay would move the minimum
    others = ("vector-newton", "vector-descent")
    loss_name = "loss"

    def __init__(self, seed: int, name: str) -> None:
        super().__init__(seed)
        self.name = name
        self.function = FUNCTIONS[name]
        self.goal = self.function.goal
        self.description = self.function.description

    def new_model(self) -> nn.Module:
        return Point(self.function)

    def batch(self, step: int) -> Batch:
        draw = self.function.draw
        return () if draw is None else (draw(self.generator(step)),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(*batch)
        return loss

    def validate(self, model: nn.Module) -> Validation:
        with torch.no_grad():
            return Validation(model().item())

    def position(self, model: nn.Module) -> tuple[float, float] | None:
        if self.function.window is None:
            return None
        x, y = model.parameters()
        return x.item(), y.item()


class Point(nn.Module):
    """The parameters of a function; calling it gives the value there, or a step's own one."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.point = nn.ParameterList(start.clone() for start in function.start)

    def forward(self, *numbers: Tensor) -> Tensor:
        if numbers and self.function.training is not None:
            return self.function.training(*self.point, *numbers)
        return self.function.formula(*self.point).sum()


def beale(x: Tensor, y: Tensor) -> Tensor:
    """Returns Beale's function (1958)."""
    terms = zip((1.5, 2.25, 2.625), (1, 2, 3), strict=True)
    return sum(((c - x + x * y**power) ** 2 for c, power in terms), 0 * x)


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """Returns the function of Rosenbrock (1960)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rastrigin(x: Tensor, y: Tensor) -> Tensor:
    """Returns Rastrigin's function (1974): a quadratic with a cosine added."""
    return sum((10 + each**2 - 10 * torch.cos(2 * torch.pi * each) for each in (x, y)), 0 * x)


def saddle(x: Tensor, y: Tensor) -> Tensor:
    """Returns a function with a saddle at 0 and minima at y = -1 and y = 1."""
    return x**2 + (y**2 - 1) ** 2 / 4


def plateau(x: Tensor, y: Tensor) -> Tensor:
    """Returns a function that is flat far from its minimum at 0."""
    return 1 - torch.exp(-(x**2 + y**2) / 2)


def square(x: Tensor) -> Tensor:
    """Returns half the squared length."""
    half: Tensor = x.square().sum() / 2
    return half


def spectrum(condition: float, count: int) -> Tensor:
    """Returns numbers from 1 down to 1 / condition, evenly on a logarithmic scale."""
    return condition ** -torch.linspace(0, 1, count, dtype=torch.float64)


@cache
def factor(count: int, condition: float, seed: int) -> Tensor:
    """Returns a matrix of a condition number, with random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, count, count)
    bases: Tensor = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
    return bases[0] * spectrum(condition, count) @ bases[1]


def ill_conditioned(x: Tensor) -> Tensor:
    """Returns a quadratic function of condition number 10 000, in a random basis."""
    return square(factor(64, 100.0, 1) @ x)


def kronecker(x: Tensor) -> Tensor:
    """Returns a quadratic function of a matrix, with a factor for each dimension."""
    return square(factor(16, 10.0, 2) @ x @ factor(16, 10.0, 3))


def layer_scales(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Returns a sum of squares of three matrices, with weights from 0.01 to 100."""
    return square(x) / 100 + square(y) + 100 * square(z)


def parameter_scales(x: Tensor) -> Tensor:
    """Returns a sum of squares whose minimizer has elements from 0.01 to 100."""
    return square(x / (100 * spectrum(1e4, len(x))) - 1)


def minimax(x: Tensor) -> Tensor:
    """Returns the largest residual of linear equations, which is not smooth at the minimum."""
    return (factor(16, 10.0, 4) @ x).abs().max()


def noisy(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns half the squared length, with normal noise of this scale in its gradient."""
    return lambda x, numbers: square(x) + scale * (numbers * x).sum()


def sparse(x: Tensor, numbers: Tensor) -> Tensor:
    """Returns half the squared length, with a gradient for about a tenth of the elements."""
    return square(torch.where(numbers > 1.28, x, x.detach()))


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def _at(x: float, y: float) -> tuple[Tensor, Tensor]:
    return x * _ones(1), y * _ones(1)


def _normal(generator: torch.Generator) -> Tensor:
    return torch.randn(64, generator=generator, dtype=torch.float64)


FUNCTIONS = {
    "rosenbrock": Function(
        rosenbrock,
        _at(-1.2, 1),
        1e-6,
        "(1 - x)² + 100 (y - x²)² from (-1.2, 1) to its minimum at (1, 1), in float64",
        window=Window((-1.7, 1.7), (-0.5, 2), (1, 1)),
    ),
    "beale": Function(
        beale,
        _at(1, 1),
        1e-6,
        "Σ (c - x + x yⁱ)², c = 1.5, 2.25, 2.625 and i = 1, 2, 3, from (1, 1) to (3, 0.5)",
        window=Window((-0.5, 4), (-1, 1.5), (3, 0.5)),
    ),
    "rastrigin": Function(
        rastrigin,
        _at(-2.2, 1.8),
        1e-3,
        "Σ 10 + x² - 10 cos 2πx in two dimensions, from (-2.2, 1.8): many local minima",
        window=Window((-3, 3), (-3, 3), (0, 0)),
    ),
    "saddle": Function(
        saddle,
        _at(1, 1e-4),
        1e-6,
        "x² + (y² - 1)² / 4 from (1, 0.0001), beside a saddle at 0",
        window=Window((-1.5, 1.5), (-1.5, 1.5), (0, 1)),
    ),
    "plateau": Function(
        plateau,
        _at(3, 3),
        1e-6,
        "1 - exp(-(x² + y²) / 2) from (3, 3), where the gradient is 0.0005",
        window=Window((-4, 4), (-4, 4), (0, 0)),
    ),
    "ill_conditioned": Function(
        ill_conditioned,
        (_ones(64),),
        1e-6,
        "|A x|² / 2 of 64 numbers; its Hessian has the condition number 10 000, in a random basis",
    ),
    "kronecker": Function(
        kronecker,
        (_ones(16, 16),),
        1e-6,
        "|A X B|² / 2 of a 16 x 16 matrix; its Hessian has the condition number 10 000",
    ),
    "layer_scales": Function(
        layer_scales,
        (_ones(8, 8), _ones(8, 8), _ones(8, 8)),
        1e-6,
        "(|X|² / 100 + |Y|² + 100 |Z|²) / 2 of three 8 x 8 matrices",
    ),
    "parameter_scales": Function(
        parameter_scales,
        (_ones(64),),
        1e-3,
        "Σ (x / s - 1)² / 2 of 64 numbers, with s from 0.01 to 100",
    ),
    "minimax": Function(
        minimax,
        (_ones(16),),
        1e-3,
        "max |A x| of 16 numbers: its gradient jumps at the minimum",
    ),
    "low_noise": Function(
        square,
        (_ones(64),),
        1e-2,
        "|x|² / 2 of 64 numbers, with normal noise of 0.1 in the gradient",
        _normal,
        noisy(0.1),
    ),
    "high_noise": Function(
        square,
        (_ones(64),),
        3.0,
        "|x|² / 2 of 64 numbers, with normal noise of 3 in the gradient",
        _normal,
        noisy(3.0),
    ),
    "sparse_gradients": Function(
        square,
        (_ones(64),),
        1e-3,
        "|x|² / 2 of 64 numbers, of which a random tenth have a gradient in each step",
        _normal,
        sparse,
    ),
}
