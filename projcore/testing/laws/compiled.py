"""Compiling a step changes nothing but its speed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from projcore.testing.law import ensure, ensure_close, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject

TOLERANCE = 1e-6
STEPS = 4
SHAPES = ((4, 3), (5,))
FIX = (
    "Do not branch on the value of a tensor or of a setting that is a number, or declare "
    "traceable = False."
)


@law(slow=True)
def compiled(subject: Subject) -> None:
    """``Optimizer(..., compile=True)`` gives the eager parameters and state, up to 1e-6."""
    point, state = _run(subject)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        # A break of the graph is an error.
        compiled_point, compiled_state = _run(subject, {"fullgraph": True})
    ensure_close(compiled_point, point, TOLERANCE, "Compiled, a step leads elsewhere", FIX)
    for mine, expected in zip(compiled_state, state, strict=True):
        ensure(mine.keys() == expected.keys(), "Compiled, a step keeps other state.", FIX)
        found, wanted = (
            [torch.as_tensor(each[key]) for key in sorted(each)] for each in (mine, expected)
        )
        ensure_close(found, wanted, TOLERANCE, "Compiled, a step keeps other state", FIX)


def _run(subject: Subject, compile: Any = False) -> tuple[list[Tensor], list[dict[str, Any]]]:
    problem = make_problem(SHAPES)
    optimizer = make_optimizer(problem, subject.chain(), compile=compile)
    return take_steps(problem, optimizer, STEPS), remembered(optimizer)
