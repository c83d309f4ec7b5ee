"""Inf and NaN show."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projcore.errors import ProjcoreError
from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject

FIX = (
    "Let NaN through, as arithmetic does (sign and comparisons do not), or raise a NonFiniteError "
    "before memory changes."
)
AFTER = 3  # steps with good gradients


@law()
def nonfinite(subject: Subject) -> str | None:
    """Inf or NaN in a gradient is not hidden: it raises an error, or parameters are not finite.

    If parameters stay finite, because bad values are skipped, so must the state: a bad value in the
    state alone would silently make all later steps zero.

    Returns the errors.
    """
    refused = None
    for bad in (math.nan, math.inf):
        for good in (0, 1, 2):
            refused = _refused(subject, bad, good) or refused
    return refused


def _refused(subject: Subject, bad: float, good: int) -> str | None:
    """Takes good steps, a bad one and good ones; returns the error if one is refused."""
    problem = make_problem(((4, 3), (5,)), dtype=torch.float32)
    optimizer = make_optimizer(problem, subject.chain())
    take_steps(problem, optimizer, good)
    before = problem.point()
    try:
        optimizer.step(lambda backward=True: _spoilt(problem, backward, bad))
        for _ in range(AFTER):
            before = problem.point()
            take_steps(problem, optimizer, 1)
    except ProjcoreError as error:
        ensure_equal(problem.point(), before, "A step was refused, but parameters changed", FIX)
        return str(error)
    if all(bool(parameter.isfinite().all()) for parameter in problem.params):
        for memory in remembered(optimizer):
            for name, value in memory.items():
                ensure(
                    not isinstance(value, Tensor) or bool(value.isfinite().all()),
                    f"After {bad} in a gradient the memory {name!r} is not finite, while "
                    "parameters are.",
                    FIX,
                )
    return None


def _spoilt(problem: Problem, backward: bool, bad: float) -> Tensor:
    """Evaluates the problem, but for one element of a gradient."""
    loss = problem.closure(backward)
    gradient = problem.params[0].grad
    if backward and gradient is not None:
        gradient[1, 2] = bad
    return loss
