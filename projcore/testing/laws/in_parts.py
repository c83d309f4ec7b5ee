"""The step of all parameters is the same, taken of one parameter after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore import Optimizer
from projcore.testing.law import NotApplicable, ensure, ensure_close, law
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, remembered
from projcore.testing.subject import Subject

STEPS = 4
TOLERANCE = 1e-8  # of float64, as for the law `passes`
FIX = (
    "Declare scope = 'all' if a tensor's result or state depends on other tensors. Let what "
    "depends on which parameter it is depend on the key that init is given."
)


@law()
def in_parts(subject: Subject) -> None:
    """Steps in the backward pass, and in buckets, equal those of all parameters at once.

    For modules of scope ``"element"`` or ``"tensor"``. In the second step a parameter has no
    gradient. After some steps the state is saved, and continued by an optimizer that updates all
    parameters at once.
    """
    if any(module.total_scope == "all" for module in subject.chain()):
        raise NotApplicable("it needs all parameters at once")
    problem, expected = _begin(subject)
    _train(problem, expected, range(STEPS))

    problem_early, early = _begin(subject)
    early.in_backward = True
    _train(problem_early, early, range(STEPS // 2))
    problem_late, late = _begin(subject)
    with torch.no_grad():
        for target, source in zip(problem_late.params, problem_early.params, strict=True):
            target.copy_(source)
    late.load_state_dict(early.state_dict())
    _train(problem_early, early, range(STEPS // 2, STEPS))
    _train(problem_late, late, range(STEPS // 2, STEPS))

    problem_small, small = _begin(subject)
    small.bucket_bytes = 1
    _train(problem_small, small, range(STEPS))

    for how, other, optimizer in (
        ("in backward", problem_early, early),
        ("in backward, saved and loaded", problem_late, late),
        ("in buckets", problem_small, small),
    ):
        what = f"{subject.name} makes other steps {how}"
        ensure_close(other.point(), problem.point(), TOLERANCE, what, FIX)
        pairs = zip(remembered(optimizer), remembered(expected), strict=True)
        for i, (found, wanted) in enumerate(pairs):
            same = found.keys() == wanted.keys()
            ensure(same, f"{subject.name} has other state for parameter {i} {how}.", FIX)
            ensure_close(_tensors(found), _tensors(wanted), TOLERANCE, what, FIX)


def _tensors(entries: dict[str, Any]) -> list[Tensor]:
    return [torch.as_tensor(entries[key]) for key in sorted(entries)]


def _begin(subject: Subject) -> tuple[Problem, Optimizer]:
    problem = make_problem()
    return problem, make_optimizer(problem, subject.chain())


def _train(problem: Problem, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        wanted: list[Tensor] = [p for i, p in enumerate(problem.params) if (step, i) != (1, 1)]
        for parameter in problem.params:
            parameter.grad = None
        torch.autograd.backward(problem.loss(problem.params), inputs=wanted)
        left = [parameter for parameter in wanted if parameter.grad is not None]
        held = optimizer.in_backward and any(parameter.requires_grad for parameter in left)
        ensure(not held, f"{len(left)} gradients were left after a step in backward.", FIX)
        optimizer.step(problem.closure if optimizer.needs & {"loss"} else None)
