"""Helpers for projections of scope "all": a number per tensor, and stacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Module, Planner, ProjectionBase, Rules, Space
from projcore.errors import ArgumentError


class Parted(ProjectionBase):
    """A projection that distinguishes tensors by a number that follows from groups or names.

    `project` is given neither, so the number is kept in the state of each tensor, as ``part``.
    """

    kinds = {"part": "fixed"}

    @abstractmethod
    def parts(self, planner: Planner, space: Space) -> Sequence[int] | None:
        """Returns the number of each tensor, or None to keep none."""

    def numbers(
        self, params: Sequence[Tensor], states: Sequence[Entries], rules: Rules | None
    ) -> list[int]:
        """Returns the numbers from the state; without them, those that follow from shapes alone."""
        if rules is not None and any("part" not in state for state in states):
            return rules.choose([None] * len(params), params)
        return [state.get("part", 0) for state in states]

    def plan(self, planner: Planner, space: Space) -> None:
        numbers = self.parts(planner, space)
        if numbers is not None:
            planner.add_entry(space, "part", numbers)
        super().plan(planner, space)


def choose(planner: Planner, rules: Rules, space: Space, setting: str | None = None) -> list[int]:
    """Returns for each tensor the index of the first rule that matches.

    Args:
        planner: Says whether an optimizer is being built.
        rules: The rules.
        space: The tensors.
        setting: The name of a setting of the module that takes precedence, unless it is None.

    Raises:
        ArgumentError: When an optimizer is built, if a rule matches no tensor.
    """
    tensors = items(space)
    given = [values[setting] for values in space.settings()] if setting else None
    if not planner.building:
        return rules.choose(space.names, tensors, groups=space.groups, given=given)
    frozen = space.frozen or ()
    followed = []
    if setting:
        settings = [space.context.settings(space.path, group) for *_, group in frozen]
        followed = [each[setting] for each in settings if each[setting] is not None]
    return rules.choose(
        space.names,
        tensors,
        groups=space.groups,
        complete=space.frozen is not None,
        given=given,
        frozen=frozen,
        followed=followed,
    )


def items(space: Space) -> Sequence[Tensor]:
    """Returns the tensors of a space without their batch dimensions."""
    if not space.batch_dims:
        return space.template
    shapes = [tensor.shape[space.batch_dims :] for tensor in space.template]
    return [
        tensor.new_empty(shape, device="meta")
        for tensor, shape in zip(space.template, shapes, strict=True)
    ]


def refuse_stacks(module: Module, space: Space) -> None:
    """Raises if a projection of scope ``"all"`` is given a stack, which would be one tensor to it.

    Raises:
        ArgumentError: If it is given a stack.
    """
    if space.batch_dims:
        name = type(module).__name__
        raise ArgumentError(
            f"{name} is inside a projection that stacks tensors, and would treat each stack as "
            f"one tensor. It needs the tensors themselves. Put it outside: {name}([Stack([...])], "
            "...)."
        )


def alike(tensors: Sequence[Tensor], key: Callable[[Tensor], object]) -> list[list[int]]:
    """Returns the indices of tensors, grouped by key, dtype and device."""
    found: dict[object, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((key(tensor), tensor.dtype, tensor.device), []).append(i)
    return list(found.values())


def as_tuple(value: object) -> tuple[Any, ...]:
    """Returns a list or tuple as a tuple, and any other value in a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks tensors of one shape; for a single one, returns a view."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)
