"""The end of a step: what writes the parameters, and how it is made to happen whole or not at all.

What only scales the update, or adds a multiple of the parameters, is folded into numbers, with
which the update is subtracted. The module before it may write the parameters itself, so that the
update never exists: a projection into a smaller space by products straight into them, Adam by a
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from projcore.core.blend import Blend, Write, blended, check_writable
from projcore.core.chain import Chain
from projcore.core.crossing import INNER
from projcore.core.module import Module, Transform
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase
from projcore.core.state import State
from projcore.errors import StepError

# The target of what writes no parameter, and so may be repeated however far it came.
NOTHING = torch.empty(0)


def make_writes(module: Chain, objective: Objective, state: State) -> list[Write]:
    """Runs a step's modules; returns what is left to do: to write the parameters."""
    chain, update = module, objective.grads
    writer: ProjectionBase | Transform | None = None
    followers: list[tuple[Transform, State]] = []
    while True:
        names = list(chain.children)
        while names and _affine(chain.children[names[-1]]):
            follower = chain.children[names[-1]]
            assert isinstance(follower, Transform)
            followers.insert(0, (follower, state.child(names.pop())))
        last = chain.children[names[-1]] if names else None
        if isinstance(last, ProjectionBase) and last.elides(objective):
            update = chain.run(names[:-1], update, objective, state)
            chain, state = last.chain, state.child(names[-1]).child(INNER)
            continue
        if isinstance(last, (ProjectionBase, Transform)) and last.writes_itself:
            writer = last
        update = chain.run(names if writer is None else names[:-1], update, objective, state)
        break
    targets = objective.params
    active = objective.active if objective.active is not None else range(len(targets))
    if isinstance(writer, ProjectionBase):
        passage = writer.enter(update, objective, state.child(names[-1]))
        blends = _fold(followers, objective)
        chosen = sorted(passage.passing.keys() & set(active))
        return [*_some(chosen, targets, passage.passing, blends), *passage.writes(targets, blends)]
    blends = _fold(followers, objective)
    if isinstance(writer, Transform):
        return writer.write(targets, blends, update, objective, state.child(names[-1]))
    return _some(active, targets, update, blends)


def _affine(module: Module) -> bool:
    return isinstance(module, Transform) and module.affine


def _fold(followers: Sequence[tuple[Transform, State]], objective: Objective) -> list[Blend]:
    """Does the step of affine modules without an update; returns what they come to."""
    blends = [Blend()] * len(objective.template)
    for follower, state in followers:
        for i, (a, b) in follower.fold(objective, state).items():
            scale, decay = blends[i]
            blends[i] = Blend(a * scale, a * decay + b)
    return blends


def _some(
    chosen: Sequence[int],
    targets: Sequence[Tensor],
    update: Sequence[Tensor] | Mapping[int, Tensor],
    blends: Sequence[Blend],
) -> list[Write]:
    return blended(
        [targets[i] for i in chosen], [update[i] for i in chosen], [blends[i] for i in chosen]
    )


def subtract(
    parameters: Sequence[Tensor], update: Sequence[Tensor], objective: Objective
) -> list[Write]:
    """Returns the one operation that subtracts an update from all parameters that have one."""
    active = objective.active if objective.active is not None else range(len(update))
    targets, tensors = [parameters[i] for i in active], [update[i] for i in active]
    check_writable(targets, tensors)
    return [Write(targets[0], lambda: torch._foreach_sub_(targets, tensors))]


def run_writes(writes: Sequence[Write], finish: Callable[[], None]) -> None:
    """Writes all parameters, or none of them, whatever is raised on the way; then finishes.

    What comes in the middle, once a parameter is written, as interrupts may, waits until the rest
    are written and ``finish`` was called. Then the first of it is raised.

    Raises:
        StepError: If an operation failed in the middle, and again when it was tried once more.
    """
    waiting: BaseException | None = None
    for done, (target, run, has_written) in enumerate([*writes, Write(NOTHING, finish)]):
        version, failures = target._version, 0
        while True:
            try:
                run()
                break
            except BaseException as error:
                # If so, it was raised behind the operation.
                written = has_written() if has_written else target._version != version
                if not done and not written:
                    raise
                failures += isinstance(error, Exception)
                if failures == 2 and not written:
                    raise _torn(done, len(writes), error) from error
                waiting = waiting or error
                if written:
                    break
    if waiting is not None:
        raise waiting


def _torn(done: int, count: int, error: BaseException) -> StepError:
    return StepError(
        f"{done} of {count} parameters were written when an operation failed twice: {error}. A "
        "step writes all or none, which was not possible. Load the last checkpoint."
    )


def make_buckets(
    parameters: Sequence[Tensor], indices: Sequence[int], size: int
) -> list[list[int]]:
    """Splits parameters, given by index, into runs of at most so many bytes, or of one."""
    buckets: list[list[int]] = []
    left = 0
    for i in indices:
        if not buckets or parameters[i].nbytes > left:
            buckets.append([])
            left = size
        buckets[-1].append(i)
        left -= parameters[i].nbytes
    return buckets
