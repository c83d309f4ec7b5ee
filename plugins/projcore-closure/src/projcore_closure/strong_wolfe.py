"""Line search for the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable

from projcore import Settings, require
from projcore_closure._line_search import Line, LineSearch, Trial
from projcore_closure._product import peaks
from projcore_closure._whole import require_whole


def strong_wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    step: float,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_evaluations: int = 25,
    min_width: float = 0.0,
) -> float:
    r"""Returns a step that satisfies the strong Wolfe conditions.

    If none is found, returns the best step that satisfies the first condition, or 0.

    Args:
        evaluate: Returns the trial at a step; its value is infinite where it is not finite.
        start: The trial at 0; its slope is negative.
        step: The first step to try.
        c1: Constant of the first condition (sufficient decrease).
        c2: Constant of the second condition (curvature).
        max_evaluations: Maximal number of evaluations.
        min_width: The search stops when the bracket is at most this wide.

    Example:
        >>> def parabola(step):
        ...     return Trial(step, (step - 3) ** 2, 2 * (step - 3))
        >>> strong_wolfe(parabola, parabola(0.0), 1.0, c2=0.1)
        3.0
    """
    low, high = start, None
    # A solution lies between low and high; high is None while there is no upper bound. Of the steps
    # that satisfy the first condition, low is the best; the value decreases from low towards high.
    for _ in range(max_evaluations):
        trial = evaluate(step)
        before = low
        if trial.value > start.value + c1 * step * start.slope or trial.value >= low.value:
            high = trial
        elif abs(trial.slope) <= -c2 * start.slope:
            return step
        else:
            if trial.slope * (1.0 if high is None else high.step - low.step) >= 0:
                high = low
            low = trial
        if high is not None and abs(high.step - low.step) <= min_width:
            break
        step = beyond(before, low) if high is None else between(low, high)
    return low.step


def beyond(before: Trial, low: Trial) -> float:
    """Returns a greater step: the minimum of a cubic, at most ten times the last step."""
    least, most = low.step + 0.01 * (low.step - before.step), 10 * low.step
    minimum = cubic_minimum(before, low)
    return most if minimum is None or minimum < low.step else min(max(minimum, least), most)


def between(low: Trial, high: Trial) -> float:
    """Returns a step inside: the minimum of a cubic, a tenth of the width from both ends."""
    minimum = cubic_minimum(low, high)
    if minimum is None:
        return (low.step + high.step) / 2
    left, right = sorted((low.step, high.step))
    margin = 0.1 * (right - left)
    return min(max(minimum, left + margin), right - margin)


def cubic_minimum(one: Trial, other: Trial) -> float | None:
    """Returns the minimizer of the cubic that interpolates two trials and their slopes, or None.

    Example:
        >>> cubic_minimum(Trial(0, 0, -3), Trial(2, 2, 9))  # a^3 - 3 a
        1.0
    """
    distance = other.step - one.step
    mean = 3 * (other.value - one.value) / distance
    inner = one.slope + other.slope - mean
    square = inner * inner - one.slope * other.slope
    if not square >= 0 or math.isinf(square):  # `not`, since it may be NaN
        return None
    root = math.copysign(math.sqrt(square), distance)
    curvature = other.slope - one.slope + 2 * root
    if curvature == 0:
        return None
    step = other.step - distance * (other.slope + root - inner) / curvature
    return step if math.isfinite(step) else None


class StrongWolfe(LineSearch):
    r"""Scales the update by a step that satisfies the strong Wolfe conditions.

    .. math::
        u \leftarrow a u, \qquad \phi(a) \le \phi(0) + c_1 a \phi'(0), \qquad
        |\phi'(a)| \le c_2 |\phi'(0)|, \qquad \phi(a) = f(x - a u)

    The first condition ensures that the loss decreases; the second that the step is long enough for
    the curvature that `LBFGS` learns from it to be positive. The search starts with ``step_size``
    and extends steps, each at most tenfold, until a solution is bracketed; then it tries the
    minimum of a cubic that interpolates the ends of the bracket. A loss or slope that is not finite
    counts as the upper end of a bracket, so the step shrinks.

    If ``max_evaluations`` do not find such a step, the result is the best step that satisfies the
    first condition. If there is none, or if loss, gradient or update is not finite, the result is
    zero: the loss never increases (inside a projection that rounds: not by more than rounding). If
    :math:`\langle g, u \rangle \le 0`, the update is an ascent direction and is replaced by the
    gradient, scaled to the norm of the update.

    Args:
        c1: Between 0 and 1; 1e-4 is usual.
        c2: Between ``c1`` and 1; 0.9 is usual for `LBFGS`, 0.1 for conjugate gradients.
        max_evaluations: Maximal number of steps to try, at least 1.
        step_size: The first step to try, greater than 0.
        tolerance_change: The search stops when no parameter changes by more than this within the
            bracket, times the largest absolute value of a parameter if that is below 1. Default
            1e-9, as in torch.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: an evaluation of the loss and its gradient per step tried, usually one after `LBFGS`; two
    temporary copies of the parameters.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LBFGS
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), LBFGS(history_size=10), StrongWolfe())

    References:
        Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, algorithms 3.5 and 3.6,
        equation 3.59.
    """

    def __init__(
        self,
        c1: float = 1e-4,
        c2: float = 0.9,
        max_evaluations: int = 25,
        step_size: float = 1.0,
        tolerance_change: float = 1e-9,
    ) -> None:
        super().__init__(
            {
                "c1": c1,
                "c2": c2,
                "max_evaluations": max_evaluations,
                "step_size": step_size,
                "tolerance_change": tolerance_change,
            }
        )

    def check(self, settings: Settings) -> None:
        require(self, "c1", settings["c1"], above=0, below=1)
        require(self, "c2", settings["c2"], above=settings["c1"], below=1)
        require_whole(self, "max_evaluations", settings["max_evaluations"])
        require(self, "step_size", settings["step_size"], above=0)
        require(self, "tolerance_change", settings["tolerance_change"], minimum=0)

    def search(self, line: Line, settings: Settings) -> float:
        return strong_wolfe(
            line.trial,
            line.start,
            float(settings["step_size"]),
            float(settings["c1"]),
            float(settings["c2"]),
            settings["max_evaluations"],
            float(settings["tolerance_change"]) * line.unit / max(peaks(line.update)),
        )
