"""Tuning of the learning rate: the same number of full runs for every contender."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

STRIDE = 10**0.5  # between rates, until the best one has a worse one on each side


class Trial(NamedTuple):
    """A learning rate and the resulting validation loss, which is None if it diverged."""

    lr: float
    loss: float | None


def next_rate(trials: Sequence[Trial], own: float) -> float:
    r"""Returns the learning rate to try next.

    First the optimizer's own. Then half a decade above or below the best one, until both its
    neighbors are worse; then the geometric mean of the best and a neighbor: the one with the wider
    gap, or else the better one.

    Example:
        >>> next_rate([Trial(0.01, 2.0), Trial(0.0316, 3.0)], own=0.01)
        0.00316
        >>> next_rate([Trial(0.01, 2.0), Trial(0.0316, 3.0), Trial(0.00316, 4.0)], own=0.01)
        0.0178
    """
    if not trials:
        return own
    ordered = sorted(trials, key=lambda trial: trial.lr)
    at = ordered.index(best(trials))
    here = ordered[at]
    if at == len(ordered) - 1 and here.loss is not None:
        return _rounded(here.lr * STRIDE)
    if at == 0:
        return _rounded(here.lr / STRIDE)
    beside = min(
        ordered[at - 1],
        ordered[at + 1],
        key=lambda trial: (-round(abs(math.log10(trial.lr / here.lr)), 1), _loss(trial)),
    )
    return _rounded(math.sqrt(here.lr * beside.lr))


def best(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the lowest loss; the lowest rate where all diverged."""
    return min(trials, key=lambda trial: (_loss(trial), trial.lr))


def at_edge(trials: Sequence[Trial]) -> bool:
    """Whether the best rate is the lowest or the highest one tried."""
    rates = [trial.lr for trial in trials]
    return bool(rates) and best(trials).lr in (min(rates), max(rates))


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")
