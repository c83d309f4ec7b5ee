"""The state of a component can be saved, sharded and loaded."""

from __future__ import annotations

from torch import Tensor

from projcore import Optimizer
from projcore.testing.law import ensure, law
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject


@law()
def memory(subject: Subject) -> None:
    """State consists of tensors and numbers under plain names, created in the first step.

    Names have no dots and no slashes, because checkpoints split at them. Every parameter has its
    entries after the first step, with or without a gradient: processes that train together must
    have the same entries. A map that is learned from gradients waits for the first one. A state
    dict that is kept shows the current state, as in torch.
    """
    full, partial = make_problem(), make_problem()
    partial.missing = frozenset({1, 3})
    entries = [remembered(_after_a_step(problem, subject)) for problem in (full, partial)]
    for i, (one, other) in enumerate(zip(*entries, strict=True)):
        for key, value in one.items():
            ensure(
                isinstance(value, (Tensor, int, float)),
                f"{key!r} in its state is a {type(value).__name__}.",
                "State holds tensors and plain numbers only.",
            )
            ensure("." not in key, f"{key!r} in its state has a dot.", "Use another name.")
            if isinstance(value, Tensor):
                ensure(
                    not value.requires_grad and value.grad_fn is None,
                    f"{key!r} in its state requires grad.",
                    "Make memory from detached tensors.",
                )
        ensure(
            one.keys() == other.keys() or "data_dependent" in subject.tags,
            f"After a first step without a gradient tensor {i} has {sorted(other)} in its state, "
            f"with one {sorted(one)}.",
            "Make all memory in init, which is called for each tensor at the first step.",
        )
    problem = make_problem()
    optimizer = _after_a_step(problem, subject)
    kept = optimizer.state_dict()["state"]
    take_steps(problem, optimizer, 2)
    for i, now in enumerate(remembered(optimizer)):
        stale = [k for k, value in now.items() if kept.get(i, {}).get(k) is not value]
        ensure(not stale, f"A state dict kept from before has {stale} of old.", "Return states.")


def _after_a_step(problem: Problem, subject: Subject) -> Optimizer:
    optimizer = make_optimizer(problem, subject.chain())
    take_steps(problem, optimizer, 1)
    return optimizer
