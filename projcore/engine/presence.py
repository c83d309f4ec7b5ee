"""The parameters that take part in steps, and the treatment of state when they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore.engine.checkpoint import fits
from projcore.engine.flat import is_shared, module_path
from projcore.engine.making import parameter_names
from projcore.engine.names import SettingNames
from projcore.errors import StepError

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer

Facts = tuple[torch.Size, torch.dtype, torch.device]


def presence(
    parameters: Sequence[Tensor], before: Sequence[Facts | None] = ()
) -> list[Facts | None]:
    """Returns shape, dtype and device of each parameter that takes part, None for the others.

    A parameter takes part if it requires a gradient or has one, or took part before. One that is
    frozen from the start is in no space and has no state. A lazy one joins when it has a shape.
    """
    took_part = {i for i, facts in enumerate(before) if facts is not None}
    return of_members(
        parameters,
        [
            i
            for i, p in enumerate(parameters)
            if p.requires_grad or i in took_part or p.grad is not None
        ],
    )


class Participants:
    """The parameters that take part, with their shapes, dtypes and devices at some time.

    Attributes:
        members: Their indices among all parameters.
        dtypes: Their dtypes.
    """

    def __init__(self, facts: Sequence[Facts | None]) -> None:
        self._count = len(facts)
        self.members = [i for i, each in enumerate(facts) if each is not None]
        self._others = [i for i, each in enumerate(facts) if each is None]
        found = [each for each in facts if each is not None]
        self._shapes = [shape for shape, _, _ in found]
        self.dtypes = [dtype for _, dtype, _ in found]
        self._devices = [device for _, _, device in found]

    def pick(self, parameters: list[Tensor]) -> list[Tensor]:
        """Returns those of all parameters that take part."""
        return [parameters[i] for i in self.members] if self._others else parameters

    def holds(self, parameters: list[Tensor], sticky: bool) -> bool:
        """Whether `presence` would return the same facts again.

        Args:
            parameters: All parameters.
            sticky: Whether those that took part before still do, since they have state.
        """
        if len(parameters) != self._count:
            return False
        members = self.pick(parameters)
        joined = any(
            parameters[i].requires_grad or parameters[i].grad is not None for i in self._others
        )
        if joined or not (sticky or all(p.requires_grad for p in members)):
            return False
        return (
            [p.shape for p in members] == self._shapes
            and [p.dtype for p in members] == self.dtypes
            and [p.device for p in members] == self._devices
        )


def of_members(parameters: Sequence[Tensor], members: Sequence[int]) -> list[Facts | None]:
    """Returns the facts of `presence`, given the indices of the parameters that take part."""
    present = set(members)
    return [
        (p.shape, p.dtype, p.device) if i in present and not is_lazy(p) else None
        for i, p in enumerate(parameters)
    ]


def follow(
    optimizer: Optimizer,
    names: SettingNames,
    groups: Sequence[Mapping[str, Any]],
    before: Sequence[Facts | None],
    now: Sequence[Facts | None],
) -> None:
    """Resets the state of modules whose space has changed, such as a vector that a new group joins.

    ``before`` and ``now`` are the `presence` of the parameters; ``before`` may be shorter.

    Raises:
        StepError: If state no longer fits because a parameter itself has changed. Then nothing is
            reset.
        ProjcoreError: If a module rejects the parameters as they are now.
    """
    expected = optimizer.plan_of(groups).expected(len(now))
    if not any(optimizer.state.values()):
        return
    if len(before) > len(now):  # parameters were removed, and it is not known which
        before = ()
    members = [i for i, facts in enumerate(before) if facts is not None and now[i] is not None]
    earlier = optimizer.plan_of(groups, members).expected(len(now))
    parameters = chain.from_iterable(group["params"] for group in groups)
    outdated: dict[str, str] = {}  # paths of modules to reset, each with an entry that does not fit
    for i, parameter in enumerate(parameters):
        live, facts = optimizer.state.get(parameter, {}), now[i]
        if facts is None:
            continue
        old = before[i] if i < len(before) else None
        for key, value in expected[i].items():
            if key in live and not _still_fits(names, key, live[key], value, old, facts):
                outdated.setdefault(module_path(key), key)
        if old is not None:  # the state of a merged space may now belong to another parameter
            for key in expected[i].keys() ^ earlier[i].keys():
                if not is_shared(key):
                    outdated.setdefault(module_path(key), key)
    for i, (old, new) in enumerate(zip(before, now, strict=False)):
        if outdated and old is not None and new is not None and old != new:
            name = parameter_names(groups)[i] or i
            raise _changed(name, old, new, next(iter(outdated.values())))
    for entries in optimizer.state.values():
        for key in [key for key in entries if module_path(key) in outdated]:
            del entries[key]
    _move_shared(optimizer, groups, expected)


def _move_shared(
    optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]
) -> None:
    """Moves the shared state of a space to the parameter that is now its first."""
    parameters = chain.from_iterable(group["params"] for group in groups)
    first = {
        key: parameter
        for parameter, entries in zip(parameters, expected, strict=True)
        for key in entries
        if is_shared(key)
    }
    for holder, entries in list(optimizer.state.items()):
        for key in [key for key in entries if first.get(key, holder) is not holder]:
            optimizer.state[first[key]].setdefault(key, entries.pop(key))


def _still_fits(
    names: SettingNames, key: str, value: Any, expected: Any, old: Facts | None, new: Facts
) -> bool:
    """Whether an entry still fits a parameter whose shape, dtype or device may have changed."""
    if not fits(names, key, value, expected):
        return False
    if old is None or not isinstance(value, Tensor) or value.ndim == 0:
        return True
    left_behind = old[2] != new[2] and value.device == old[2]
    return not left_behind and (old[1] == new[1] or value.dtype == expected.dtype)


def _changed(name: str | int, old: Facts, new: Facts, key: str) -> StepError:
    was, now = (
        f"{str(dtype).removeprefix('torch.')} of shape {tuple(shape)} on {device}"
        for shape, dtype, device in (old, new)
    )
    return StepError(
        f"Parameter {name!r} was {was} when its state was created, and is {now} now, which "
        f"{key!r} does not fit. Shape, dtype and device must not change. Build a new optimizer, or "
        "call optimizer.state.clear() to reinitialize all state."
    )
