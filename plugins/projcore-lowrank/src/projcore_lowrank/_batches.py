"""Matrices that run as one: equal ones on an accelerator, as a stack."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from projcore import Node
from projcore.ops import alike

ENDS: tuple[Literal["left", "right"], ...] = ("left", "right")
Value = TypeVar("Value")

# Bytes that a stack of matrices may have. It takes a copy, in the place of as many calls.
WORKSPACE = 1 << 30
same_kind = alike


class Batch(NamedTuple):
    """Some of the tensors of a step, which are multiplied as one.

    Attributes:
        places: Which they are.
        states: The memory of each.
        made: The bases that products read, if they were made for this step: of several, stacked.
    """

    places: list[int]
    states: list[Node]
    made: Node | None = None

    @property
    def state(self) -> Node:
        """What products read: the bases, of several tensors stacked."""
        return stacked_bases(self.states) if self.made is None else self.made

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns its tensors, of those of all places, as one."""
        return stacked([tensors[i] for i in self.places])

    def spread(self, tensor: Tensor, into: list[Any]) -> None:
        """Puts what was made of all into their places, as views."""
        for i, each in zip(self.places, parted(tensor, len(self.places)), strict=True):
            into[i] = each

    def members(self) -> list[Batch]:
        """Returns a batch for each tensor."""
        count = len(self.places)
        if count == 1:
            return [self]
        made: list[Node | None] = [None] * count
        if self.made is not None:
            stacks = {end: self.made[end] for end in ENDS if end in self.made}
            made = [
                {**state, **{end: stack[k] for end, stack in stacks.items()}}
                for k, state in enumerate(self.states)
            ]
        return [
            Batch([i], [state], each)
            for i, state, each in zip(self.places, self.states, made, strict=True)
        ]


def stacked_bases(states: list[Node]) -> Node:
    """Returns memory of which the bases are those of all, stacked, and the others of the first."""
    if len(states) == 1:
        return states[0]
    return {
        **states[0],
        **{end: torch.stack([state[end] for state in states]) for end in ENDS if end in states[0]},
    }


def batches(tensors: Sequence[Tensor], keys: Sequence[Hashable]) -> list[list[int]]:
    """Returns the places of tensors that go together: those of one key, up to `WORKSPACE` bytes.

    Each is alone on a CPU, where a call is cheap and a copy is not.
    """
    found: dict[Hashable, list[list[int]]] = {}
    for i, (tensor, key) in enumerate(zip(tensors, keys, strict=True)):
        runs = found.setdefault((key, tensor.shape, tensor.dtype, tensor.device), [])
        most = 1 if is_alone(tensor) else WORKSPACE // max(tensor.nbytes, 1)
        if not runs or len(runs[-1]) >= most:
            runs.append([])
        runs[-1].append(i)
    return [run for runs in found.values() for run in runs]


def pick(values: Sequence[Value], places: Sequence[int]) -> list[Value]:
    """Returns the values at some places."""
    return [values[i] for i in places]


def is_alone(tensor: Tensor) -> bool:
    """Whether a tensor is on a device where stacks gain nothing."""
    return tensor.device.type in ("cpu", "meta")


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors as one, along a new first dimension; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))


def parted(tensor: Tensor, count: int) -> list[Tensor]:
    """Undoes `stacked`, by views."""
    return [tensor] if count == 1 else list(tensor.unbind())


def apart(tensor: Tensor, count: int) -> list[Tensor]:
    """Undoes `stacked`, for what is kept: each with memory of its own, as files need it."""
    return [tensor] if count == 1 else list(torch._foreach_mul(list(tensor.unbind()), 1))


def all_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Returns which tensors, of one dtype and device, are finite; waits for a device once."""
    parts = [
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        for tensor in tensors
    ]
    # NaN is passed on; a tenth of the time that isfinite(...).all() takes.
    extremes = torch.stack([extreme for part in parts for extreme in part.aminmax()])
    finite = extremes.view(-1, 2).isfinite().all(-1)
    found: list[bool] = [True] * len(parts) if bool(finite.all()) else finite.tolist()
    return found
