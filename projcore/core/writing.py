"""The end of a step: what writes the parameters, and how it is made to happen whole or not at all.

What only scales the update, or adds a multiple of the parameters, is folded into numbers, with
which the update is subtracted. The module before it may write the parameters itself, so that the
update never exists: a projection into a smaller space by products straight into them, Adam by a
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from projcore.core.blend import Blend, Write, blended, check_writable
from projcore.core.chain import Chain
from projcore.core.crossing import INNER
from projcore.core.finite import located
from projcore.core.module import Module, Transform
from projcore.core.objective import Objective
from projcore.core.passage import enter
from projcore.core.projection import ProjectionBase
from projcore.core.state import State
from projcore.errors import NonFiniteError, StepError

# The target of what writes no parameter, and so may be repeated however far it came.
NOTHING = torch.empty(0, device="cpu")


class End(NamedTuple):
    """How a chain ends.

    Attributes:
        runs: What runs first: a chain, names of its modules, and its memory, one after the other.
        writer: What then writes the parameters itself, with its memory, if there is such a module.
        followers: The affine modules behind, which are folded.
    """

    runs: list[tuple[Chain, list[str], State]]
    writer: tuple[ProjectionBase | Transform, State] | None
    followers: list[tuple[Transform, State]]


def make_writes(module: Chain, objective: Objective, state: State) -> list[Write]:
    """Runs a step's modules; returns what is left to do: to write the parameters."""
    try:
        return _make_writes(module, objective, state)
    except NonFiniteError as error:
        raise located(error, objective) from error


def _make_writes(module: Chain, objective: Objective, state: State) -> list[Write]:
    end = _end_of(module, objective, state)
    update = objective.grads
    for chain, names, memory in end.runs:
        update = chain.run(names, update, objective, memory)
    targets = objective.params
    active = objective.active if objective.active is not None else range(len(targets))
    if end.writer is None:
        return _take(active, targets, update, _fold(end.followers, objective))
    writer, memory = end.writer
    if isinstance(writer, Transform):
        blends = _fold(end.followers, objective)
        return writer.make_writes(targets, blends, update, objective, memory)
    passage = enter(writer, update, objective, memory)
    blends = _fold(end.followers, objective)
    passing = sorted(passage.passing.keys() & set(active))
    return [*_take(passing, targets, passage.passing, blends), *passage.writes(targets, blends)]


def _end_of(chain: Chain, objective: Objective, state: State) -> End:
    """Looks from the end: past affine modules, and into layouts whose modules run outside."""
    names = list(chain.children)
    followers: list[tuple[Transform, State]] = []
    while names and _affine(chain.children[names[-1]]):
        follower = chain.children[names[-1]]
        assert isinstance(follower, Transform)
        followers.insert(0, (follower, state.child(names.pop())))
    last = chain.children[names[-1]] if names else None
    if isinstance(last, ProjectionBase) and last.elides(objective):
        inner = _end_of(last.chain, objective, state.child(names[-1]).child(INNER))
        runs = [(chain, names[:-1], state), *inner.runs]
        return End(runs, inner.writer, inner.followers + followers)
    if isinstance(last, (ProjectionBase, Transform)) and last.writes_itself:
        return End([(chain, names[:-1], state)], (last, state.child(names[-1])), followers)
    return End([(chain, names, state)], None, followers)


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


def _take(
    chosen: Sequence[int],
    targets: Sequence[Tensor],
    update: Sequence[Tensor] | Mapping[int, Tensor],
    blends: Sequence[Blend],
) -> list[Write]:
    """Returns what has some of the parameters take an update."""
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
