"""The base class of line searches, and the objective along a line."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from projcore import Objective, Settings, State
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import dot, peaks, plus, scaled


class Trial(NamedTuple):
    r"""A point on a line: the step :math:`a`, :math:`\phi(a)` and :math:`\phi'(a)`."""

    step: float
    value: float
    slope: float


class Line:
    r"""The objective along an update: :math:`\phi(a) = f(x - a u)`.

    If :math:`\langle g, u \rangle \le 0`, the update is not a descent direction. Then :math:`u` is
    the gradient instead, scaled to the norm of the update.
    """

    def __init__(self, update: list[Tensor], objective: Objective) -> None:
        grads = objective.grads
        slope = dot(grads, update)
        if slope <= 0:
            length, steepness = math.sqrt(dot(update, update)), math.sqrt(dot(grads, grads))
            ratio = length / steepness if steepness > 0 else 0.0
            update, slope = scaled(grads, ratio), length * steepness
        loss = math.nan if objective.loss is None else float(objective.loss)
        self.update = update
        self.start = Trial(0.0, loss, -slope)
        self._objective = objective

    @property
    def falls(self) -> bool:
        """Whether it is a descent direction; False where the gradient is zero or not finite."""
        return math.isfinite(self.start.value) and -math.inf < self.start.slope < 0

    @property
    def unit(self) -> float:
        """The largest absolute value of an element of the point, capped at 1."""
        return min(1.0, max(peaks(self._objective.params)))

    def shift(self, step: float) -> list[Tensor]:
        """Returns the update times a step."""
        return scaled(self.update, step)

    def value(self, step: float) -> float:
        """Returns the loss at a step, or infinity if it is not finite; computes no gradient."""
        loss, _ = self._objective.evaluate(self._point(step), backward=False)
        value = float(loss)
        return value if math.isfinite(value) else math.inf

    def trial(self, step: float) -> Trial:
        """Returns loss and slope at a step; the loss is infinite if either is not finite."""
        loss, grads = self._objective.evaluate(self._point(step))
        assert grads is not None
        value, slope = float(loss), -dot(grads, self.update)
        finite = math.isfinite(value) and math.isfinite(slope)
        return Trial(step, value if finite else math.inf, slope)

    def _point(self, step: float) -> list[Tensor]:
        # Rounded like the step that is finally taken, so that the loss there is exactly this one.
        return plus(self._objective.params, self.shift(step), -1.0)


class LineSearch(Evaluating):
    """Scales the update by a step of sufficient decrease; override `search`."""

    needs = frozenset({"params", "grads", "loss", "closure"})

    @abstractmethod
    def search(self, line: Line, settings: Settings) -> float:
        """Returns the step, or 0 if there is none. The line is a descent direction."""

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        line = Line(update, objective)
        step = self.search(line, settings) if line.falls else 0.0
        return line.shift(step) if step else [torch.zeros_like(tensor) for tensor in update]
