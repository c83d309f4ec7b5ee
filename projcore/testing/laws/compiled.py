"""Compiling a step changes nothing but its speed."""

from __future__ import annotations

import warnings
from functools import partial
from unittest import mock

import torch

from projcore.engine.tree import is_traceable
from projcore.testing.law import NotApplicable, ensure_close, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, take_steps, train
from projcore.testing.subject import Subject

TOLERANCE = 1e-6
STEPS = 4
SHAPES = ((4, 3), (5,))


@law(slow=True)
def compiled(subject: Subject) -> None:
    """``Optimizer(..., compile=True)`` leads where the eager one leads, to 1e-6."""
    if not all(is_traceable(module) for module in subject.chain()):
        raise NotApplicable("it is not traceable, and runs eagerly")
    eager = train(make_problem(SHAPES), subject.chain(), STEPS)
    torch.compiler.reset()
    problem = make_problem(SHAPES)
    optimizer = make_optimizer(problem, subject.chain(), compile=True)
    one_graph = partial(torch.compile, fullgraph=True)  # so that a break of the graph is an error
    with warnings.catch_warnings(), mock.patch.object(torch, "compile", one_graph):
        warnings.simplefilter("ignore")  # the compiler's own
        actual = take_steps(problem, optimizer, STEPS)
    ensure_close(
        actual,
        eager,
        TOLERANCE,
        "Compiled, a step leads elsewhere",
        "Do not branch on the value of a tensor or of a setting that is a number.",
    )
