"""Newton's method with conjugate gradients."""

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
    r"""Solves :math:`H z = b` to a tolerance, until a direction of negative curvature.

    The step along each direction :math:`d` is :math:`\|r\|^2 / |d^\top H d|`, with the residual
    :math:`r = b - H z`. The first direction with :math:`d^\top H d < 0` is the last one: later
    iterates would not be solutions, but the result is still a descent direction.

    Args:
        product: Returns :math:`H v`.
        target: `b`.
        tolerance: :math:`\tau`. The iteration stops when
            :math:`\|r\| \le \min(\tau, \sqrt{\|z\| / \text{unit}}) \|b\|`.
        max_iterations: Maximal number of products.
        unit: A length; with 0 the tolerance is the only limit.

    Returns:
        The solution. If the curvature along a direction is zero or not finite, the current iterate,
        or `b` if this is the first direction.

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
        if not length < math.inf:  # `not`, since it may be NaN
            return solution if iteration else list(target)
        add_(solution, direction, length)
        if curvature < 0:
            break
        residual = plus(residual, turned, -length)
        before, square = square, dot(residual, residual)
        direction = plus(residual, direction, square / before)
    return solution


class Curvature:
    r"""The Hessian at this step's point, by finite differences of gradients.

    Args:
        objective: Evaluates the gradients.
        perturbation: The width of differences, relative to the norm of the point; None for the
            default.
        central: Whether to use central differences.
    """

    def __init__(self, objective: Objective, perturbation: float | None, central: bool) -> None:
        if perturbation is None:
            perturbation = rounding(objective) ** (1 / 3 if central else 1 / 2)
        self._distance = perturbation * unit(objective)
        self._objective = objective
        self._central = central

    def product(self, vector: list[Tensor]) -> list[Tensor]:
        """Returns the Hessian times a nonzero vector."""
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
    """Returns the unit of the length of steps: the point's norm, at least 1."""
    params = objective.params
    return max(1.0, math.sqrt(dot(params, params)))


class NewtonCG(Evaluating):
    r"""Multiplies the update by the inverse Hessian, with conjugate gradients.

    .. math::
        u \leftarrow z, \qquad \|H z - u\| \le \min(\tau, \sqrt{\|z\| / \max(1, \|x\|)})\, \|u\|,
        \qquad H = \nabla^2 f(x)

    Only products with `H` are computed, each by a difference of gradients,

    .. math::
        H v \approx \frac{\nabla f(x + h v) - \nabla f(x)}{h}, \qquad
        h = \varepsilon \max(1, \|x\|) / \|v\|,

    or :math:`(\nabla f(x + h v) - \nabla f(x - h v)) / 2 h` if ``central``. The closure calls
    ``backward`` itself and leaves no graph for a second derivative, so products are approximate;
    for a quadratic they are exact up to rounding. The closure must be deterministic: the same loss
    at the same point, with the same batch and no dropout.

    The first direction of negative curvature is the last of the iteration, with a step computed
    from the absolute value of its curvature: the result is a descent direction, but of unknown
    scale. So put a line search directly after it, unless the function is convex. If the curvature
    along a direction is zero, the result is the current iterate, or the unchanged update if this is
    the first direction. An update that is zero or not finite is returned unchanged.

    Inside a projection, `H` is the projected Hessian :math:`U^\top \nabla^2 f(x) U`. All tensors
    are treated as one vector, and a complex element as a pair of real ones. A parameter without a
    gradient is not changed, and is not part of `H`.

    Args:
        max_iterations: Maximal number of products, at least 1.
        tolerance: :math:`\tau`, above 0; smaller values approach the exact Newton step.
        perturbation: :math:`\varepsilon`, above 0. Default: the square root (the cube root, if
            ``central``) of the largest machine epsilon among those of the parameters and the loss.
            Pass it if the model's parameters are coarser than the tensors here and the loss, such
            as bfloat16 parameters with a float32 loss inside `To`: there 0.1.
        central: Whether to use central differences: twice the cost, and an error of order
            :math:`h^2` rather than `h`.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: a gradient per product (two if ``central``), and about ten passes over the parameters;
    about seven temporary copies of them. No state.

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

    Differs from the source: there, the iteration ends before a direction of negative curvature,
    which makes steepest descent steps where the first direction has one; and there the tolerance is
    :math:`\min(\tau, \sqrt{\|u\|})`, which depends on the scale of the loss.

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
        if not 0 < norm < math.inf:  # `not`, since it may be NaN
            return list(update)
        hessian = Curvature(objective, settings["perturbation"], self.central)
        # Normalized, so that no product of three such vectors leaves the range of float32.
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
