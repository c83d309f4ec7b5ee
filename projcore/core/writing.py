"""The end of a step: what writes the parameters, and how it is made to happen whole or not at all.

Most steps end in one operation on all parameters. A projection into a smaller space may instead
write each parameter itself, as a product straight into it, so that the full update never exists;
modules behind it that only scale the update, or add a multiple of the parameters, are then folded
into numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from projcore.core.chain import Chain
from projcore.core.module import Module, Transform
from projcore.core.objective import Objective
from projcore.core.projection import Blend, ProjectionBase, Write
from projcore.core.state import State
from projcore.errors import ContractError, StepError


def make_writes(
    module: Chain, parameters: Sequence[Tensor], objective: Objective, state: State
) -> list[Write]:
    """Runs a step's modules; returns what is left to do: to write the parameters."""
    cut = _last_writer(module)
    if cut is None:
        return subtract(parameters, module.step(objective.grads, objective, state), objective)
    names = list(module.children)
    update = module.run(names[:cut], objective.grads, objective, state)
    writer = module.modules[cut]
    assert isinstance(writer, ProjectionBase)
    passage = writer.enter(update, objective, state.child(names[cut]))
    blends = [Blend()] * len(parameters)
    for name in names[cut + 1 :]:
        follower = module.children[name]
        assert isinstance(follower, Transform)
        for i, (a, b) in follower.fold(objective, state.child(name)).items():
            scale, decay = blends[i]
            blends[i] = Blend(a * scale, a * decay + b)
    targets = [parameter.detach() for parameter in parameters]
    return [
        *_write_passing(targets, passage.passing, blends, objective),
        *passage.writes(targets, blends),
    ]


def subtract(
    parameters: Sequence[Tensor], update: Sequence[Tensor], objective: Objective
) -> list[Write]:
    """Returns the one operation that subtracts an update from all parameters that have one."""
    active = objective.active if objective.active is not None else range(len(update))
    targets, tensors = [parameters[i] for i in active], [update[i] for i in active]
    for i, (target, tensor) in enumerate(zip(targets, tensors, strict=True)):
        if tensor.dtype != target.dtype or tensor.device != target.device:
            _check_writable(i, target, tensor)
    return [Write(targets[0], lambda: torch._foreach_sub_(targets, tensors))]


def run_writes(writes: Sequence[Write], finish: Callable[[], None]) -> None:
    """Writes all parameters, or none of them, whatever is raised on the way; then finishes.

    What comes in the middle, once a parameter is written, as an interrupt may, waits until the
    rest are written and ``finish`` was called.

    Raises:
        StepError: If an operation failed in the middle, and again when it was tried once more.
    """
    waiting: BaseException | None = None
    for done, (target, run) in enumerate(writes):
        version = target._version
        try:
            run()
        except BaseException as error:
            written = target._version != version  # raised behind the operation
            if not done and not written:
                raise
            waiting = waiting or error
            if not written:
                _once_more(run, done, len(writes))
    finish()
    if waiting is not None:
        raise waiting


def _once_more(run: Callable[[], object], done: int, count: int) -> None:
    try:
        run()
    except Exception as error:
        raise StepError(
            f"{done} of {count} parameters were written when an operation failed twice: {error}. A "
            "step writes all or none, which was not possible. Load the last checkpoint."
        ) from error


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


def _last_writer(module: Chain) -> int | None:
    """The place in the chain of the projection that writes parameters itself, if there is one."""
    modules = module.modules
    folded = takewhile(lambda each: isinstance(each, Transform) and each.affine, modules[::-1])
    place = len(modules) - sum(1 for _ in folded) - 1
    return place if place >= 0 and _writes(modules[place]) else None


def _writes(module: Module) -> bool:
    return isinstance(module, ProjectionBase) and module.overrides("writes")


def _write_passing(
    targets: Sequence[Tensor],
    passing: dict[int, Tensor],
    blends: Sequence[Blend],
    objective: Objective,
) -> list[Write]:
    """Returns the operation that writes the parameters that the projection does not apply to."""
    active = set(objective.active if objective.active is not None else range(len(targets)))
    chosen = [i for i in passing if i in active]
    if not chosen:
        return []
    update = [passing[i] for i in chosen]
    params = [targets[i] for i in chosen]
    scales = [blends[i].scale for i in chosen]
    if any(scale != 1 for scale in scales):
        update = list(torch._foreach_mul(update, scales))
    if any(blends[i].decay for i in chosen):
        decays = torch._foreach_mul(params, [blends[i].decay for i in chosen])
        update = list(torch._foreach_add(update, decays))
    return subtract(params, update, objective.select(chosen))


def _check_writable(i: int, parameter: Tensor, update: Tensor) -> None:
    castable = parameter.is_complex() or not update.is_complex()
    if not castable or update.device != parameter.device:
        raise ContractError(
            f"The update of parameter {i} is {update.dtype} on {update.device}, the parameter "
            f"{parameter.dtype} on {parameter.device}. It cannot be subtracted. Correct the module "
            "that made it."
        )
