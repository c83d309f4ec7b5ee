r"""Steps to a target loss, by the rule of the public optimizer leaderboard.

A contender reaches a target at the first validation where, over :math:`n` seeds,

.. math::
    (\text{target} - \text{mean}) \sqrt n \ge c

so that its true mean is below the target, and not only the mean of these seeds. The leaderboard of
modded-nanogpt (track 3) has a constant, 0.004, for its own task. Here :math:`c` follows from the
noise of the task at hand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.stats import t as student

if TYPE_CHECKING:
    from projcore_lab.comparison import Result

LEVEL = 0.001  # a mean that equals the target passes a check with this probability


@dataclass(frozen=True)
class Target:
    """A loss to reach, and the required margin.

    Attributes:
        loss: The loss to reach.
        noise: Standard deviation of the loss over seeds, near the target; None if it is not known.
        freedom: The degrees of freedom of that estimate.
        constant: :math:`c`.
    """

    loss: float
    noise: float | None
    freedom: int
    constant: float

    def steps(self, result: Result) -> int | None:
        """Returns the steps that a contender took, or None if it did not get there."""
        margin = self.constant / math.sqrt(len(result.runs))
        return next((c.step for c in result.checks if self.loss - c.loss >= margin), None)


def calibrate(loss: float, results: Sequence[Result]) -> Target:
    """Returns the target with the constant that the noise of these results asks for.

    The noise is that of each contender's losses over seeds, where their mean passes the target,
    pooled. The constant is it times the quantile of Student's distribution at 1 - `LEVEL`, with
    the pooled degrees of freedom. With one seed, the noise is unknown and the constant 0.
    """
    samples = [
        result.losses_at(next(c.step for c in result.checks if c.loss <= loss))
        for result in results
        if any(c.loss <= loss for c in result.checks)
    ]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return Target(loss, None, 0, 0.0)
    squares = sum((len(sample) - 1) * statistics.variance(sample) for sample in samples)
    noise = math.sqrt(squares / freedom)
    return Target(loss, noise, freedom, noise * float(student.ppf(1 - LEVEL, freedom)))
