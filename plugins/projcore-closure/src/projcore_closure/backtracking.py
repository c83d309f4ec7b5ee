"""Backtracking line search."""

from __future__ import annotations

from projcore import Settings, require
from projcore_closure._line_search import Line, LineSearch
from projcore_closure._whole import require_whole


class Backtracking(LineSearch):
    r"""Shortens the update until the loss decreases sufficiently (Armijo's condition).

    .. math::
        u \leftarrow a u, \qquad f(x - a u) \le f(x) - c\, a \langle g, u \rangle

    with the first such :math:`a` of :math:`a_0, \beta a_0, \beta^2 a_0, \dots`. A loss that is not
    finite violates the condition. If no step is found, or if loss, gradient or update is not
    finite, the result is zero: the loss never increases (inside a projection that rounds: not by
    more than rounding). If :math:`\langle g, u \rangle \le 0`, as can happen with momentum, the
    update is an ascent direction and is replaced by the gradient, scaled to the norm of the update.

    Steps are never longer than :math:`a_0` times the update, so the update needs a meaningful
    scale, such as that of `LBFGS` or `NewtonCG`: a gradient shrinks with the scale of the loss.

    Inside a projection the points are those of the projected space. A closure that takes the
    keyword ``backward`` is called with ``backward=False``, since gradients are not needed.

    Args:
        step_size: :math:`a_0`, greater than 0.
        beta: :math:`\beta`, between 0 and 1.
        c: The required fraction of the decrease that the slope predicts, between 0 and 1.
        max_evaluations: Maximal number of steps to try, at least 1.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: an evaluation of the loss per step tried; two temporary copies of the parameters.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = Optimizer([weight], Backtracking())
        >>> def closure(backward=True):
        ...     loss = (weight**4).sum()
        ...     if backward:
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> bool(closure(backward=False) < loss)
        True

    References:
        Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, algorithm 3.1.
    """

    def __init__(
        self,
        step_size: float = 1.0,
        beta: float = 0.5,
        c: float = 1e-4,
        max_evaluations: int = 25,
    ) -> None:
        super().__init__(
            {"step_size": step_size, "beta": beta, "c": c, "max_evaluations": max_evaluations}
        )

    def check(self, settings: Settings) -> None:
        require(self, "step_size", settings["step_size"], above=0)
        require(self, "beta", settings["beta"], above=0, below=1)
        require(self, "c", settings["c"], above=0, below=1)
        require_whole(self, "max_evaluations", settings["max_evaluations"])

    def search(self, line: Line, settings: Settings) -> float:
        step, beta, c = (float(settings[name]) for name in ("step_size", "beta", "c"))
        for _ in range(settings["max_evaluations"]):
            if line.value(step) <= line.start.value + c * step * line.start.slope:
                return step
            step *= beta
        return 0.0
