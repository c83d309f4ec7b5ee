"""Parameters that are frozen are as if they were not there."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject

STEPS = 2
FROZEN = ((4, 3), (6,))


@law()
def frozen(subject: Subject) -> None:
    """Frozen parameters have no effect: the run is bitwise equal to one without them.

    One with ``requires_grad=False`` and no gradient, of any dtype, does not change and has no
    state. Once it has a gradient it is updated, or at least joins without an error.
    """
    alone, beside = make_problem(), make_problem()
    expected = take_steps(alone, make_optimizer(alone, subject.chain()), STEPS)
    base = [Parameter(torch.ones(shape).double(), requires_grad=False) for shape in FROZEN]
    base.append(Parameter(torch.ones(5, dtype=torch.uint8), requires_grad=False))
    optimizer = make_optimizer(beside, subject.chain(), groups=[*beside.params, *base])
    actual = take_steps(beside, optimizer, STEPS)
    count = len(beside.params)
    what = "With frozen parameters beside them the others move otherwise"
    ensure_equal(actual, expected, what, "Work on the tensors that are handed in only.")
    ensure(
        all(bool((p == 1).all()) for p in base),
        "A frozen parameter was moved.",
        "Move only the tensors that are given.",
    )
    ensure(
        not any(remembered(optimizer)[count:]),
        f"A frozen parameter has memory: {[sorted(m) for m in remembered(optimizer)[count:]]}.",
        "Make memory for the tensors that are handed in only.",
    )
    for parameter in base[:2]:
        parameter.requires_grad_(True)
        parameter.grad = torch.full_like(parameter, 0.1)
    take_steps(beside, optimizer, 1)
