r"""The problems on which both sides run, and the run itself.

``"fixed"`` feeds gradients that do not depend on the parameters, so that a difference can only
add up and tolerances may be tight. ``"nonlinear"`` takes the gradients of

.. math:: \log\bigl(1 + \sum_i \operatorname{mean}\, (\tanh(X_i W_i Z_i) - Y_i)^2 \bigr),

so that a difference feeds back, between the parameters too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Shape = tuple[int, ...]
Name = Literal["fixed", "nonlinear"]

# Wide, tall, square, and a bias that no method projects.
SHAPES: tuple[Shape, ...] = ((8, 20), (20, 8), (12, 12), (7,))
LAST = 250
PERIOD = 100  # refreshes in steps 1, 101 and 201, counted from 1
# The first steps, around both refreshes, and the end.
STEPS = (1, 2, PERIOD, PERIOD + 1, 2 * PERIOD, 2 * PERIOD + 1, LAST)

# Ways that stay apart from places where rounding decides, as between two near singular values:
# there the authors' code differs from itself as soon as a gradient does in its last bit.
SEEDS = (2, 3)


def run(
    build: Callable[[list[Parameter]], Optimizer],
    shapes: Sequence[Shape] = SHAPES,
    steps: Iterable[int] = STEPS,
    seed: int = SEEDS[0],
    problem: Name = "fixed",
    dtype: torch.dtype = torch.float64,
    pause: range = range(0),
) -> list[list[Tensor]]:
    """Returns copies of all parameters after each of the given numbers of steps.

    The learning rate rises over the first 20 steps, by a scheduler: with a constant one, it would
    not show whether a norm is limited before or after the rate comes in.

    Args:
        build: Makes the optimizer of the parameters.
        shapes: Of the parameters, in order.
        steps: After how many steps to copy; ascending.
        seed: Of start, gradients and data.
        problem: Which of the two.
        dtype: Of parameters and gradients. All numbers are drawn in float64 and rounded.
        pause: Steps in which the first parameter has no gradient.
    """
    wanted = sorted(steps)
    generator = torch.Generator().manual_seed(seed)
    params = [Parameter(_draw(shape, generator).mul(0.3).to(dtype)) for shape in shapes]
    gradient = {"fixed": _Fixed, "nonlinear": _Nonlinear}[problem](params, generator)
    optimizer = build(params)
    scheduler = LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 20))
    copies = []
    for step in range(1, wanted[-1] + 1):
        gradient.set(step)
        if step in pause:
            params[0].grad = None
        optimizer.step()
        scheduler.step()
        if step in wanted:
            copies.append([param.detach().clone() for param in params])
    return copies


def _draw(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class _Fixed:
    """Matrices of a decaying spectrum that drift, with noise; loud and quiet spells."""

    def __init__(self, params: list[Parameter], generator: torch.Generator) -> None:
        self.params = params
        self.generator = generator
        self.ends = [[self._decaying(param), self._decaying(param)] for param in params]

    def _decaying(self, param: Parameter) -> Tensor:
        tensor = _draw(param.shape, self.generator)
        if tensor.ndim != 2:
            return tensor
        left, values, right = torch.linalg.svd(tensor, full_matrices=False)
        # Each singular value is well apart from the next, so that rounding does not turn a basis.
        return left * (0.7 ** torch.arange(len(values))) @ right

    def set(self, step: int) -> None:
        # Three times as loud every 40 steps, and thus past the growth that Fira and APOLLO allow.
        volume = 3.0 if step % 40 < 3 else 1.0
        part = step / LAST
        for param, (start, end) in zip(self.params, self.ends, strict=True):
            noise = 0.05 * _draw(param.shape, self.generator)
            gradient = volume * ((1 - part) * start + part * end + noise)
            param.grad = gradient.to(param.dtype)


class _Nonlinear:
    """Fits a target with each parameter, all behind one logarithm."""

    def __init__(self, params: list[Parameter], generator: torch.Generator) -> None:
        self.params = params
        self.terms = []
        for param in params:
            rows, columns = param.shape if param.ndim == 2 else (param.numel(), 1)
            left = _draw((2 * rows, rows), generator) / rows**0.5
            right = _draw((columns, 2 * columns), generator) / columns**0.5
            target = 0.7 * torch.tanh(_draw((2 * rows, 2 * columns), generator))
            self.terms.append([part.to(param.dtype) for part in (left, right, target)])

    def set(self, step: int) -> None:
        total: Tensor | float = 0.0
        for param, (left, right, target) in zip(self.params, self.terms, strict=True):
            matrix = param if param.ndim == 2 else param.unsqueeze(1)
            total = total + (torch.tanh(left @ matrix @ right) - target).square().mean()
        loss = torch.log1p(torch.as_tensor(total))
        gradients = torch.autograd.grad(loss, self.params)
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
