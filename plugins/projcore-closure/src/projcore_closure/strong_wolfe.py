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

    If none is found, it is the best step that satisfies the first of them, or 0.

    Args:
        evaluate: Returns the trial at a step; its value is infinite where there is none.
        start: The trial at 0; its slope is negative.
        step: The first step to try.
        c1: Of the first condition.
        c2: Of the second condition.
        max_evaluations: How often to evaluate.
        min_width: Give up when the steps known to bracket a solution are this close.

    Example:
        >>> def parabola(step):
        ...     return Trial(step, (step - 3) ** 2, 2 * (step - 3))
        >>> strong_wolfe(parabola, parabola(0.0), 1.0, c2=0.1)
        3.0
    """
    low, high = start, None
    # A solution lies between low and high; high is None while it may be at any greater step. Of the
    # steps that satisfy the first condition, low is the best; the value falls from there on.
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
    """Returns a greater step: where a cubic has its minimum, at most ten times as far."""
    least, most = low.step + 0.01 * (low.step - before.step), 10 * low.step
    minimum = cubic_minimum(before, low)
    return most if minimum is None or minimum < low.step else min(max(minimum, least), most)


def between(low: Trial, high: Trial) -> float:
    """Returns a step inside: where a cubic has its minimum, a tenth of the width off the ends."""
    minimum = cubic_minimum(low, high)
    if minimum is None:
        return (low.step + high.step) / 2
    left, right = sorted((low.step, high.step))
    margin = 0.1 * (right - left)
    return min(max(minimum, left + margin), right - margin)


def cubic_minimum(one: Trial, other: Trial) -> float | None:
    """Returns where the cubic through two trials, with their slopes, has its minimum, or None.

    Example:
        >>> cubic_minimum(Trial(0, 0, -3), Trial(2, 2, 9))  # a^3 - 3 a
        1.0
    """
    distance = other.step - one.step
    mean = 3 * (other.value - one.value) / distance
    inner = one.slope + other.slope - mean
    square = inner * inner - one.slope * other.slope
    if not square >= 0 or math.isinf(square):  # not: it may be no number
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

    The first makes the loss fall; the second makes the step long enough for the curvature that
    `LBFGS` learns from it to be positive. Steps are tried from ``step_size`` on, up to ten times as
    far each, until they bracket a solution; then where a cubic through the bracket's ends has its
    minimum. A loss or slope that is not finite brackets, so the step shrinks.

    If ``max_evaluations`` do not find such a step, it is the best that satisfies the first
    condition, and if there is none, or where loss, gradient or update is not finite, the result is
    zero: the loss never rises (inside a projection that computes: not by more than rounding). If
    :math:`\langle g, u \rangle \le 0`, the update points uphill; then :math:`u` is the gradient,
    scaled to the length of the update.

    Args:
        c1: Between 0 and 1; 1e-4 is usual.
        c2: Between ``c1`` and 1; 0.9 is usual for `LBFGS`, 0.1 for conjugate gradients.
        max_evaluations: How many steps to try, at least 1.
        step_size: The first step to try, greater than 0.
        tolerance_change: Give up when no parameter changes by more than this within the bracket,
            times the largest absolute value of a parameter if that is below 1. Default 1e-9, as in
            torch.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: an evaluation of the loss and its gradient for each step tried, mostly one after `LBFGS`;
    two copies of the parameters.

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
