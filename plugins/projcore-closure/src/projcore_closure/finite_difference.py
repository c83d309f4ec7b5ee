"""Gradients by finite differences of the loss, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore.errors import StepError
from projcore.ops import sharded_as, unsharded
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import flat


class FiniteDifference(Evaluating):
    r"""Computes the gradient by central differences: two losses per element.

    .. math::
        u_i \leftarrow \frac{f(x + h_i e_i) - f(x - h_i e_i)}{2 h_i}, \qquad
        h_i = \varepsilon \max(1, |x_i|)

    with :math:`h_i` after rounding. The error is of order :math:`h^2`. It is intended for tests and
    for problems of few dimensions: losses are evaluated in a Python loop, because a closure
    evaluates one point at a time. Inside a projection to `r` numbers there are `2 r` losses. The
    incoming update is ignored, so put it first.

    No gradient is read, and the closure need not call ``backward``. Line searches and `LBFGS` read
    gradients, so after this module they need a closure that calls it. A complex element is treated
    as a pair of real ones. A parameter that requires no gradient is not changed.

    Args:
        perturbation: :math:`\varepsilon`, above 0. Default: the cube root of the dtype's machine
            epsilon, for which rounding and truncation errors are about equal.

    Raises:
        ArgumentError: If ``perturbation`` is not above 0.
        StepError: If ``perturbation`` is lost in the rounding of a parameter.

    Cost: two losses without gradients (``backward=False``) per element; two temporary copies of the
    parameters; each process gathers one sharded parameter at a time. No state.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
        >>> optimizer = Optimizer([weight], FiniteDifference(), LR(0.1))
        >>> weight.grad = torch.zeros_like(weight)
        >>> loss = optimizer.step(lambda: (weight.detach() ** 2).sum())
        >>> weight.detach()
        tensor([ 2.4000, -3.2000], dtype=torch.float64)

    References:
        Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, equation 8.7.
    """

    zeroth_order = True

    def __init__(self, perturbation: float | None = None) -> None:
        super().__init__({"perturbation": perturbation})

    def check(self, settings: Settings) -> None:
        if settings["perturbation"] is not None:
            require(self, "perturbation", settings["perturbation"], above=0)

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        params, perturbation = objective.params, settings["perturbation"]
        result = []
        for i, param in enumerate(params):
            relative = perturbation or torch.finfo(param.dtype).eps ** (1 / 3)
            moved = unsharded(param).clone(memory_format=torch.contiguous_format)
            grad = torch.zeros_like(moved)
            elements, slopes = flat(moved), flat(grad)  # views
            for k, x in enumerate(elements.tolist()):
                width = float(relative) * max(1.0, abs(x))
                ends, losses = [], []
                for there in (x + width, x - width):
                    elements[k] = there
                    ends.append(elements[k].item())
                    point = [*params[:i], sharded_as(moved, param), *params[i + 1 :]]
                    losses.append(float(objective.evaluate(point, backward=False)[0]))
                elements[k] = x
                if ends[0] == ends[1]:
                    raise StepError(
                        f"FiniteDifference(perturbation={perturbation!r}) does not change an "
                        f"element {x!r} of dtype {param.dtype}. It must be larger than the "
                        "rounding error. Pass a larger perturbation, or None."
                    )
                slopes[k] = (losses[0] - losses[1]) / (ends[0] - ends[1])
            result.append(sharded_as(grad, param))
        return result
