"""Newton's method, its system solved by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import dot, plus, wide
from projcore_closure._whole import require_whole

Product = Callable[[list[Tensor]], list[Tensor]]


def conjugate_gradients(
    product: Product, target: list[Tensor], tolerance: float, max_iterations: int
) -> list[Tensor]:
    r"""Solves :math:`H z = b` as far as is needed, where `H` curves upward.

    Args:
        product: Returns :math:`H v`.
        target: `b`.
        tolerance: It ends when :math:`\|b - H z\|` is at most this.
        max_iterations: How many products to take.

    Returns:
        The solution so far, when a direction comes where the curvature is not positive and finite;
        `b`, if that is the first.

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
    for iteration in range(max_iterations):
        if math.sqrt(square) <= tolerance:
            break
        turned = product(direction)
        curvature = dot(direction, turned)
        if not 0 < curvature < math.inf:  # not: it may be no number
            return solution if iteration else list(target)
        length = square / curvature
        torch._foreach_add_(solution, direction, alpha=length)
        residual = list(torch._foreach_sub(residual, turned, alpha=length))
        before, square = square, dot(residual, residual)
        direction = list(torch._foreach_add(residual, direction, alpha=square / before))
    return solution


class Curvature:
    r"""The Hessian at this step's point, by differences of gradients.

    Args:
        objective: Evaluates the gradients.
        perturbation: How far to go, relative to the norm of the point; None for the default.
        central: Whether to go both ways.
    """

    def __init__(self, objective: Objective, perturbation: float | None, central: bool) -> None:
        params = objective.params
        if perturbation is None:
            perturbation = rounding(objective) ** (1 / 3 if central else 1 / 2)
        self._distance = perturbation * max(1.0, math.sqrt(dot(params, params)))
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
        return list(torch._foreach_div(torch._foreach_sub(ahead, behind), width))

    def _gradient(self, vector: list[Tensor], step: float) -> list[Tensor]:
        _, grads = self._objective.evaluate(plus(self._objective.params, vector, step))
        assert grads is not None
        return grads


def rounding(objective: Objective) -> float:
    """Returns the coarsest rounding, relative, among those of the point and of the loss.

    Of the loss because a projection may have made the point finer than the parameters are.
    """
    loss = objective.loss
    tensors = objective.template if loss is None else [*objective.template, loss]
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors)


class NewtonCG(Evaluating):
    r"""Multiplies the update by the inverse Hessian, with conjugate gradients.

    .. math::
        u \leftarrow z, \qquad \|H z - u\| \le \min(\tau, \sqrt{\|u\|})\, \|u\|,
        \qquad H = \nabla^2 f(x)

    Only products with `H` are taken, each a difference of gradients,

    .. math::
        H v \approx \frac{\nabla f(x + h v) - \nabla f(x)}{h}, \qquad
        h = \varepsilon \max(1, \|x\|) / \|v\|,

    or :math:`(\nabla f(x + h v) - \nabla f(x - h v)) / 2 h` if ``central``. A closure that runs
    backward itself leaves no graph to differentiate again, so products are not exact; those of a
    quadratic are, up to rounding. The closure must give the same loss whenever it is asked at the
    same point: the same batch, no dropout.

    Where the function does not curve upward along a direction, the solution so far is the result;
    along the first of all, the update as it came, of which only the direction means something. So
    put a line search right after it, unless the function is convex. Where the update is zero or not
    finite, it is the result.

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
        tolerance = min(float(settings["tolerance"]), math.sqrt(norm)) * norm
        target = [wide(tensor) for tensor in update]
        found = conjugate_gradients(hessian.product, target, tolerance, settings["max_iterations"])
        return [each.to(tensor.dtype) for each, tensor in zip(found, update, strict=True)]
