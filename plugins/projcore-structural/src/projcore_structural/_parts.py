"""What projections of scope "all" share: numbers by which they tell tensors apart, and stacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from projcore import Module, Node, Objective, ProjectionBase, Row, Rules, State
from projcore.errors import ArgumentError


class Parted(ProjectionBase):
    """A projection that tells tensors apart by a number, which follows from groups or names.

    `project` is given neither, so the number is noted in the memory of each tensor, as ``part``.
    """

    kinds = {"part": "fixed"}

    @abstractmethod
    def parts(self, objective: Objective) -> Sequence[int] | None:
        """Returns the number of each tensor, or None to note none."""

    def numbers(
        self, params: Sequence[Tensor], states: Sequence[Node], rules: Rules | None
    ) -> list[int]:
        """Returns the numbers noted; without notes, those that follow from shapes alone."""
        if rules is not None and any("part" not in state for state in states):
            return rules.choose([None] * len(params), params)
        return [state.get("part", 0) for state in states]

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if any("part" not in node for node in state.nodes):
            self._note(objective, state)
        return super().step(update, objective, state)

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        self._note(objective, state)
        super().prepare(objective, state, rows)

    def _note(self, objective: Objective, state: State) -> None:
        for node, part in zip(state.nodes, self.parts(objective) or (), strict=False):
            node["part"] = part


def choose(
    rules: Rules, objective: Objective, given: tuple[int | None, ...] | None = None
) -> list[int]:
    """Returns, for each tensor of a space, the index given, or of the first rule that holds."""
    tensors = items(objective)
    shapes, dtypes = tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors)
    return _choose(rules, tuple(objective.names), shapes, dtypes, tuple(objective.groups), given)


def choose_all(
    rules: Rules, objective: Objective, given: tuple[int | None, ...] | None = None
) -> list[int]:
    """As `choose`, when an optimizer is built: a rule that holds for no tensor is an error."""
    return rules.choose(
        objective.names,
        items(objective),
        groups=objective.groups,
        complete=objective.absent is not None,
        given=given,
        absent=objective.absent or (),
    )


def items(objective: Objective) -> list[Tensor]:
    """One tensor for each of the objective's, without its dimensions of a batch."""
    if not objective.batch_dims:
        return objective.template
    shapes = [tensor.shape[objective.batch_dims :] for tensor in objective.template]
    return [
        tensor.new_empty(shape, device="meta")
        for tensor, shape in zip(objective.template, shapes, strict=True)
    ]


@lru_cache(maxsize=256)
def _choose(
    rules: Rules,
    names: tuple[str | None, ...],
    shapes: tuple[torch.Size, ...],
    dtypes: tuple[torch.dtype, ...],
    groups: tuple[Hashable, ...],
    given: tuple[int | None, ...] | None,
) -> list[int]:
    tensors = [
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    return rules.choose(names, tensors, groups=groups, given=given)


def refuse_stacks(module: Module, objective: Objective) -> None:
    """Raises if a projection of scope ``"all"``, which takes a stack for one tensor, is given one.

    Raises:
        ArgumentError: If it is.
    """
    if objective.batch_dims:
        name = type(module).__name__
        raise ArgumentError(
            f"{name} stands inside a projection that hands in stacks, which it would take for "
            f"single tensors. It needs the tensors themselves. Put it outside: "
            f"{name}([Stack([...])], ...)."
        )


def alike(tensors: Sequence[Tensor], key: Callable[[Tensor], object]) -> list[list[int]]:
    """Returns the indices of tensors that have a key, a dtype and a device in common."""
    found: dict[object, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((key(tensor), tensor.dtype, tensor.device), []).append(i)
    return list(found.values())


def as_tuple(value: object) -> tuple[Any, ...]:
    """Returns a list or tuple as a tuple, and anything else as a tuple of it alone."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks tensors of one shape; of a single one it makes a view."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)
