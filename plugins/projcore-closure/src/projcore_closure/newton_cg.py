"""Newton's method, its system solved by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import add_, dot, plus, scaled, wide
from projcore_closure._rounding import rounding
from projcore_closure._whole import require_whole

Product = Callable[[list[Tensor]], list[Tensor]]


def conjugate_gradients(
    product: Product,
    target: list[Tensor],
    tolerance: float,
    max_iterations: int,
    unit: float = 0.0,
) -> list[Tensor]:
    r"""Solves :math:`H z = b` as far as is needed, where `H` curves upward.

    Along each direction :math:`d` it goes :math:`\|r\|^2 / |d^\top H d|`, with the residual
    :math:`r = b - H z`. Where :math:`d^\top H d < 0` that is the last one: the iterates are no
    solutions from there on, but the function falls along the result all the same.

    Args:
        product: Returns :math:`H v`.
        target: `b`.
        tolerance: It ends when :math:`\|r\| \le \min(\tau, \sqrt{\|z\| / \text{unit}}) \|b\|`.
        max_iterations: How many products to take.
        unit: A length; 0 for no limit beside the tolerance.

    Returns:
        The solution so far, if the curvature is zero or not finite along a direction; `b`, if that
        is the first.

    Example:
        >>> (solution,) = conjugate_gradients(
        ...     lambda v: [torch.tensor([2.0, 4.0]) * v[0]], [torch.ones(2)], 1e-6, 10
        ... )
        >>> solution
        tensor([0.5000, 0.2500])
    """
    solution = [torch.zeros_like(tensor) for tensor in target]
    residual = direction = target
    square = dot(residual, residual)
    norm = math.sqrt(square)
    for iteration in range(max_iterations):
        limit = tolerance
        if unit > 0:
            limit = min(limit, math.sqrt(math.sqrt(dot(solution, solution)) / unit))
        if math.sqrt(square) <= limit * norm:
            break
        turned = product(direction)
        curvature = dot(direction, turned)
        length = square / abs(curvature) if curvature else math.inf
        if not length < math.inf:  # not: it may be no number
            return solution if iteration else list(target)
        add_(solution, direction, length)
        if curvature < 0:
            break
        residual = plus(residual, turned, -length)
        before, square = square, dot(residual, residual)
        direction = plus(residual, direction, square / before)
    return solution


class Curvature:
    r"""The Hessian at this step's point, by differences of gradients.

    Args:
        objective: Evaluates the gradients.
        perturbation: How far to go, relative to the norm of the point; None for the default.
        central: Whether to go both ways.
    """

    def __init__(self, objective: Objective, perturbation: float | None, central: bool) -> None:
        if perturbation is None:
            perturbation = rounding(objective) ** (1 / 3 if central else 1 / 2)
        self._distance = perturbation * unit(objective)
        self._objective = objective
        self._central = central

    def product(self, vector: list[Tensor]) -> list[Tensor]:
        """Returns the Hessian times a vector that is not zero."""
        width = self._distance / math.sqrt(dot(vector, vector))
        ahead = self._gradient(vector, width)
        if self._central:
            behind = self._gradient(vector, -width)
            width *= 2
        else:
            behind = self._objective.grads
        return scaled(plus(ahead, behind, -1.0), 1 / width)

    def _gradient(self, vector: list[Tensor], step: float) -> list[Tensor]:
        _, grads = self._objective.evaluate(plus(self._objective.params, vector, step))
        assert grads is not None
        return grads


def unit(objective: Objective) -> float:
    """Returns the length that steps are short or long against: the point's norm, at least 1."""
    params = objective.params
    return max(1.0, math.sqrt(dot(params, params)))


class NewtonCG(Evaluating):
    r"""Multiplies the update by the inverse Hessian, with conjugate gradients.

    .. math::
        u \leftarrow z, \qquad \|H z - u\| \le \min(\tau, \sqrt{\|z\| / \max(1, \|x\|)})\, \|u\|,
        \qquad H = \nabla^2 f(x)

    Only products with `H` are taken, each a difference of gradients,

    .. math::
        H v \approx \frac{\nabla f(x + h v) - \nabla f(x)}{h}, \qquad
        h = \varepsilon \max(1, \|x\|) / \|v\|,

    or :math:`(\nabla f(x + h v) - \nabla f(x - h v)) / 2 h` if ``central``. A closure that runs
    backward itself leaves no graph to differentiate again, so products are not exact; those of a
    quadratic are, up to rounding. The closure must give the same loss whenever it is asked at the
    same point: the same batch, no dropout.

    Where the function curves downward along a direction :math:`d` of the iteration, that is the
    last one, and the step along it is the one that the absolute value of its curvature gives: the
    loss falls along the result, but how far is not known. So put a line search right after it,
    unless the function is convex. Where the function is a straight line along a direction, the
    solution so far is the result; along the first, the update as it came. Where the update is zero
    or not finite, it is the result.

    Inside a projection, `H` is the Hessian as seen there, :math:`U^\top \nabla^2 f(x) U`. All
    tensors make one vector. A complex element is a pair of reals. A parameter without a gradient
    stays, and is not part of `H`.

    Args:
        max_iterations: How many products to take, at least 1.
        tolerance: :math:`\tau`, above 0; the smaller, the nearer to Newton's own step.
        perturbation: :math:`\varepsilon`, above 0. By default the square root (the cube root, if
            ``central``) of the coarsest rounding unit among those of the parameters and of the
            loss. Give it if parameters are coarser than the tensors here and the loss show, such as
            bfloat16 ones with a float32 loss inside `To`: there 0.1.
        central: Go both ways: at twice the cost, an error of :math:`h^2` rather than `h`.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: a gradient for each product (two if ``central``), and some ten passes over the
    parameters; some seven copies of them. No memory between steps.

    Example:
        >>> from projcore import Optimizer
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
        >>> optimizer = Optimizer([weight], NewtonCG(tolerance=1e-8))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (weight**2 * torch.tensor([1.0, 10.0])).sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> bool(closure() < 1e-10)
        True

    Differs from the source: there, the iteration ends before a direction that curves downward,
    which makes steps of steepest descent where there is one in each step; and there the tolerance
    is :math:`\min(\tau, \sqrt{\|u\|})`, which depends on the scale of the loss.

    References:
        Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, algorithm 7.1, equation 7.10.
    """

    needs = frozenset({"params", "grads", "loss", "closure"})

    def __init__(
        self,
        max_iterations: int = 100,
        tolerance: float = 0.5,
        perturbation: float | None = None,
        central: bool = False,
    ) -> None:
        self.central = central
        super().__init__(
            {
                "max_iterations": max_iterations,
                "tolerance": tolerance,
                "perturbation": perturbation,
            }
        )

    def check(self, settings: Settings) -> None:
        require_whole(self, "max_iterations", settings["max_iterations"])
        require(self, "tolerance", settings["tolerance"], above=0)
        if settings["perturbation"] is not None:
            require(self, "perturbation", settings["perturbation"], above=0)

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        norm = math.sqrt(dot(update, update))
        if not 0 < norm < math.inf:  # not: it may be no number
            return list(update)
        hessian = Curvature(objective, settings["perturbation"], self.central)
        # Of length 1, so that no product of three such vectors leaves the range of float32.
        target = [wide(tensor) / norm for tensor in update]
        solution = conjugate_gradients(
            hessian.product,
            target,
            float(settings["tolerance"]),
            settings["max_iterations"],
            unit(objective) / norm,
        )
        result = scaled(solution, norm)
        return [each.to(tensor.dtype) for each, tensor in zip(result, update, strict=True)]
