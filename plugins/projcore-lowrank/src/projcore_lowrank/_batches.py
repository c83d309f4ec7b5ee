"""Batches of matrices: equal shapes are stacked on accelerators."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from projcore import Entries
from projcore.ops import alike, stack

ENDS: tuple[Literal["left", "right"], ...] = ("left", "right")
Value = TypeVar("Value")

# The maximum bytes of a stack of matrices, which replaces many calls by one copy.
WORKSPACE = 1 << 30
same_kind = alike


class Batch(NamedTuple):
    """Some tensors of a step, which are multiplied together.

    Attributes:
        places: Their indices.
        states: The state of each.
        made: The bases that products read, if they were made for this step; stacked for several.
    """

    places: list[int]
    states: list[Entries]
    made: Entries | None = None

    @property
    def state(self) -> Entries:
        """The bases that products read, stacked for several tensors."""
        return stacked_bases(self.states) if self.made is None else self.made

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns its tensors, selected from all tensors of the step, as one stack."""
        return stacked([tensors[i] for i in self.places])

    def spread(self, tensor: Tensor, into: list[Any]) -> None:
        """Writes views of a stack to the indices of its tensors."""
        for i, each in zip(self.places, parted(tensor, len(self.places)), strict=True):
            into[i] = each

    def members(self) -> list[Batch]:
        """Returns a batch for each tensor."""
        count = len(self.places)
        if count == 1:
            return [self]
        made: list[Entries | None] = [None] * count
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


def stacked_bases(states: list[Entries]) -> Entries:
    """Returns a state with the stacked bases of all, and the other entries of the first."""
    if len(states) == 1:
        return states[0]
    return {
        **states[0],
        **{end: torch.stack([state[end] for state in states]) for end in ENDS if end in states[0]},
    }


def batches(tensors: Sequence[Tensor], keys: Sequence[Hashable]) -> list[list[int]]:
    """Returns the indices of tensors to stack: those with one key, up to `WORKSPACE` bytes.

    On a CPU, where calls are cheaper than copies, nothing is stacked.
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
    """Returns the values at some indices."""
    return [values[i] for i in places]


def is_alone(tensor: Tensor) -> bool:
    """Whether a tensor is on a device where stacks are not faster."""
    return tensor.device.type in ("cpu", "meta")


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors stacked along a new first dimension; a single one unchanged. Read-only."""
    return tensors[0] if len(tensors) == 1 else stack(tensors)


def parted(tensor: Tensor, count: int) -> list[Tensor]:
    """Inverts `stacked` by views."""
    return [tensor] if count == 1 else list(tensor.unbind())


def apart(tensor: Tensor, count: int) -> list[Tensor]:
    """Inverts `stacked` for state: by tensors with separate memory, for checkpoints."""
    return [tensor] if count == 1 else list(torch._foreach_mul(list(tensor.unbind()), 1))


def all_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Returns which tensors, of one dtype and device, are finite; synchronizes once."""
    parts = [
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        for tensor in tensors
    ]
    # Propagates NaN, in a tenth of the time of isfinite(...).all().
    extremes = torch.stack([extreme for part in parts for extreme in part.aminmax()])
    finite = extremes.view(-1, 2).isfinite().all(-1)
    found: list[bool] = [True] * len(parts) if bool(finite.all()) else finite.tolist()
    return found
