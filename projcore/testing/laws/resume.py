"""A run that was saved and loaded goes on as if nothing had happened."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from projcore import Module
from projcore.engine.plan import PASSES
from projcore.errors import ProjcoreError
from projcore.testing.law import ensure, ensure_equal, law, same_bits
from projcore.testing.parts import Merge, Mix, Scalars
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject

STEPS = 3


@law()
def resume(subject: Subject) -> None:
    """Saving and loading between steps gives bitwise the uninterrupted run.

    Through ``torch.save`` and ``torch.load(weights_only=True)`` into a new optimizer. Alone, inside
    a mixture of elements, inside a vector and inside a batch of scalars.
    """
    none = frozenset[str]()
    wrappers: list[tuple[str, Callable[[list[Module]], list[Module]], frozenset[str]]] = [
        ("bare", lambda modules: modules, PASSES),
        ("in a mixture", lambda modules: [Mix(modules)], PASSES),
        ("in a vector", lambda modules: [Merge(modules)], none),
        ("in scalars", lambda modules: [Scalars(modules)], none),
    ]
    for name, wrap, passes in wrappers:
        problem = make_problem(dtype=torch.float32)
        try:
            optimizer = make_optimizer(problem, wrap(subject.chain()), passes)
            take_steps(problem, optimizer, STEPS)
        except ProjcoreError:
            if name == "bare":
                raise
            continue  # it cannot stand there
        saved = _save({"point": problem.point(), "optimizer": optimizer.state_dict()})
        expected = take_steps(problem, optimizer, STEPS)

        loaded = torch.load(io.BytesIO(saved), weights_only=True)
        again = Problem(loaded["point"])
        other = make_optimizer(again, wrap(subject.chain()), passes)
        other.load_state_dict(loaded["optimizer"])
        fix = (
            "All that outlives a step must be in its state, as tensors and numbers: what a module "
            "keeps on itself is not saved."
        )
        ensure_equal(
            take_steps(again, other, STEPS), expected, f"Resuming {name} is not bitwise", fix
        )
        ensure_same_memory(remembered(other), remembered(optimizer), f"After resuming {name}", fix)


def ensure_same_memory(
    actual: list[dict[str, Any]], expected: list[dict[str, Any]], what: str, fix: str
) -> None:
    """Raises unless two memories agree in every bit."""
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        ensure(
            one.keys() == other.keys(),
            f"{what} the memory of tensor {i} has {sorted(one)}, not {sorted(other)}.",
            fix,
        )
        for key, value in one.items():
            same = (
                same_bits(value, other[key]) if isinstance(value, Tensor) else value == other[key]
            )
            ensure(same, f"{what} {key!r} of tensor {i} differs.", fix)


def _save(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
