"""A batch of tensors is as many tensors, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from projcore import Module
from projcore.errors import ProjcoreError
from projcore.testing.law import NotApplicable, ensure_close, law, listed
from projcore.testing.parts import Scalars, Stack
from projcore.testing.problem import Problem, flat, make_problem
from projcore.testing.run import train
from projcore.testing.subject import Subject

TOLERANCE = 1e-12  # between two float64 runs of a few steps that round differently
STEPS = 3


@law(unless=["stochastic"])
def batched(subject: Subject) -> str | None:
    """The result on a stack of tensors is the stack of the results.

    A component that acts on each tensor separately (scope ``"tensor"`` or ``"element"``) runs on a
    stack of matrices and on a stack of scalars, and on the same tensors as separate parameters.
    """
    if subject.cls.scope == "all" or subject.pick(subject.chain()).total_scope == "all":
        raise NotApplicable('of scope "all", it takes a stack for one tensor')
    left_out = []
    matrices, scalars = make_problem([(4, 3)] * 3), make_problem([(2, 3)])
    for stack, problem, alone in (
        (Stack, matrices, _copy(matrices.point())),
        (Scalars, scalars, _copy(scalars.point()[0].flatten().unbind())),
    ):
        try:
            expected = train(alone, subject.chain(), STEPS)
        except ProjcoreError as error:
            left_out.append(str(error))  # for example, of a method for matrices, scalars
            continue
        modules: list[Module] = [stack(subject.chain())]
        actual = train(problem, modules, STEPS, passes=frozenset())
        ensure_close(
            [tensor.flatten() for tensor in actual],
            [flat(expected)] if len(actual) == 1 else [tensor.flatten() for tensor in expected],
            TOLERANCE,
            f"On a {stack.__name__.lower()} it does not do what it does on each tensor by itself",
            "Reduce over all but the first batch_dims dimensions, or do not name batch_dims.",
        )
    if len(left_out) == 2:
        raise NotApplicable(str(listed(left_out)))
    return listed(left_out)


def _copy(tensors: Sequence[Tensor]) -> Problem:
    return Problem([tensor.clone() for tensor in tensors])
