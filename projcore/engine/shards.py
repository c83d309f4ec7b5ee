"""Sharded tensors (`DTensor`): which part is where, and how full ones move to and from owners."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projcore._shards import group_of, indices
from projcore.errors import ArgumentError

if TYPE_CHECKING:
    import torch.distributed.tensor  # where there are such tensors, it has been imported

Part = tuple[slice, ...]
ALIGNMENT = 16  # bytes, so that tensors of any dtype may begin there


@dataclass(frozen=True)
class Shards:
    """How a tensor lies on the processes of a mesh, which are numbered in the mesh's order.

    Attributes:
        shape: The full shape.
        mesh: The mesh.
        placements: Along which dimension each dimension of the mesh shards it, if it does.
    """

    shape: torch.Size
    mesh: Any
    placements: tuple[Any, ...]

    @classmethod
    def of(cls, tensor: Any) -> Shards:
        """Returns how a tensor lies."""
        return cls(tensor.shape, tensor.device_mesh, tuple(tensor.placements))

    @classmethod
    def by_rows(cls, shape: torch.Size, like: Shards) -> Shards:
        """Returns how a tensor lies whose rows are sharded by the mesh as another's elements."""
        rows = torch.distributed.tensor.Shard(0)
        replicate = torch.distributed.tensor.Replicate()
        placements = (replicate if each.is_replicate() else rows for each in like.placements)
        return cls(shape, like.mesh, tuple(placements))

    @cached_property
    def parts(self) -> list[Part]:
        """The part of each process."""
        places = itertools.product(*map(range, self.mesh.shape))
        return [self.part(place) for place in places]

    def part(self, place: Sequence[int]) -> Part:
        """Returns the part of the process at a place of the mesh."""
        if any(placement.is_partial() for placement in self.placements):
            raise ArgumentError(
                f"A tensor of shape {tuple(self.shape)} has the placements {self.placements}: "
                "its values are sums over processes. Optimizers need these taken. Call "
                "redistribute on it first."
            )
        found = indices(self.shape, self.placements, self.mesh.shape, place)
        return tuple(map(self._as_slice, found))

    def _as_slice(self, index: Tensor) -> slice:
        first, count = (int(index[0]), len(index)) if len(index) else (0, 0)
        if count and int(index[-1]) - first != count - 1:
            raise ArgumentError(
                f"A parameter of shape {tuple(self.shape)} has the placements {self.placements}, "
                "by which the part of a process is not one block of it. Modules that need it "
                "unsharded know blocks only. Shard it in another order, or evenly."
            )
        return slice(first, first + count)

    def sender(self, rank: int, owner: int) -> bool:
        """Whether a process sends its part to an owner, who would get it of several."""
        places = [
            (place, its)
            for place, its, each in zip(
                _coordinates(rank, self.mesh.shape),
                _coordinates(owner, self.mesh.shape),
                self.placements,
                strict=True,
            )
            if each.is_replicate()
        ]
        return all(place == its for place, its in places)

    def wrap(self, local: Tensor) -> Tensor:
        """Returns the tensor of which this is the part of this process."""
        stride = torch.empty(self.shape, device="meta").stride()
        made: Tensor = torch.distributed.tensor.DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=stride
        )
        return made


def local_like(tensor: Any, like: Any) -> Tensor:
    """Returns the part of a tensor in this process if it lay as another; gradients may not."""
    if tuple(tensor.placements) != tuple(like.placements):
        tensor = tensor.redistribute(placements=like.placements)
    part: Tensor = tensor.to_local()
    return part


def _coordinates(rank: int, shape: Sequence[int]) -> list[int]:
    found = []
    for size in reversed(shape):
        rank, place = divmod(rank, size)
        found.append(place)
    return found[::-1]


class Team:
    """The processes of a mesh, numbered in its order.

    Attributes:
        ranks: The rank of each in the world.
        me: The number of this process.
        order: Their numbers, in the order of the group.
        device: Where their tensors are.
    """

    def __init__(self, mesh: Any) -> None:
        self.ranks: list[int] = mesh.mesh.flatten().tolist()
        self.me = self.ranks.index(torch.distributed.get_rank())
        group = group_of(mesh, range(mesh.ndim))
        # The group itself ends with `destroy_process_group`, if nobody keeps it.
        self._name = group.group_name
        order = torch.distributed.get_process_group_ranks(group)
        self.order = [self.ranks.index(rank) for rank in order]
        self.device = torch.device(mesh.device_type)

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def group(self) -> Any:
        """The group of them in torch."""
        torchs: Any = torch.distributed.distributed_c10d
        return torchs._resolve_process_group(self._name)

    def gathered(self, value: object) -> list[Any]:
        """Returns what each process has given, small things."""
        found: list[Any] = [None] * len(self)
        torch.distributed.all_gather_object(found, value, self.group)
        return [found[self.order.index(i)] for i in range(len(self))]


@dataclass(frozen=True)
class Cargo:
    """A tensor, or a part of one, among the bytes that two processes exchange.

    Attributes:
        place: Of which tensor it is, by its place in the list.
        part: Which part.
        shape: The shape of that.
        dtype: Its dtype.
        begin: The byte at which it begins.
    """

    place: int
    part: Part
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int

    def view(self, buffer: Tensor) -> Tensor:
        """Returns it as it lies in the bytes."""
        size = math.prod(self.shape) * self.dtype.itemsize
        flat = buffer[self.begin : self.begin + size].view(self.dtype)
        return flat.view(self.shape)


class Load(list[Cargo]):
    """What one process sends to another."""

    nbytes: int = 0

    def add(self, place: int, part: Part, dtype: torch.dtype) -> None:
        """Adds a part of a tensor."""
        shape = tuple(each.stop - each.start for each in part)
        size = math.prod(shape) * dtype.itemsize
        if size:
            self.append(Cargo(place, part, shape, dtype, self.nbytes))
            self.nbytes += -(-size // ALIGNMENT) * ALIGNMENT


class Transfer:
    """Moves sharded tensors to the processes that own them, unsharded, and back.

    Args:
        shards: How the tensors lie, all on one mesh.
        dtypes: Their dtypes.
        owners: The numbers of the processes that own them.
        team: The processes of the mesh.

    Attributes:
        own: The places of those that this process owns.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        dtypes: Sequence[torch.dtype],
        owners: Sequence[int],
        team: Team,
    ) -> None:
        self.shards, self.dtypes, self.owners, self.team = shards, dtypes, owners, team
        self.own = [i for i, owner in enumerate(owners) if owner == team.me]
        me, everyone = team.me, range(len(team))
        # Between this process and each other: parts of its own full tensors, and parts that it has
        # of tensors that the other owns. What goes one way at first comes back on the other.
        self._collected, self._given = ([Load() for _ in everyone] for _ in range(2))
        self._held, self._taken = ([Load() for _ in everyone] for _ in range(2))
        for i, (each, owner) in enumerate(zip(shards, owners, strict=True)):
            self._taken[owner].add(i, each.parts[me], dtypes[i])
            if each.sender(me, owner):
                self._held[owner].add(i, each.parts[me], dtypes[i])
            for other in everyone if owner == me else ():
                self._given[other].add(i, each.parts[other], dtypes[i])
                if each.sender(other, me):
                    self._collected[other].add(i, each.parts[other], dtypes[i])

    def part(self, chosen: Sequence[int]) -> Transfer:
        """Returns the way of some of the tensors."""
        return Transfer(
            [self.shards[i] for i in chosen],
            [self.dtypes[i] for i in chosen],
            [self.owners[i] for i in chosen],
            self.team,
        )

    @property
    def sent(self) -> tuple[int, int]:
        """How many bytes this process sends to others, to collect and to hand out."""
        to_others = [i for i in range(len(self.team)) if i != self.team.me]
        held, given = (
            sum(loads[i].nbytes for i in to_others) for loads in (self._held, self._given)
        )
        return held, given

    def collect(self, tensors: Sequence[Any]) -> list[Tensor]:
        """Returns the full tensors that this process owns."""
        local = list(map(local_like, tensors, self.shards))
        received = self._exchange(self._held, self._collected, lambda cargo: local[cargo.place])
        full = {
            i: torch.empty(self.shards[i].shape, dtype=self.dtypes[i], device=self.team.device)
            for i in self.own
        }
        _copy_all((full[cargo.place][cargo.part], view) for cargo, view in received)
        return list(full.values())

    def hand_out(self, full: Sequence[Tensor]) -> list[Tensor]:
        """Returns the parts here of tensors of which each process gave those that it owns."""
        given = dict(zip(self.own, full, strict=True))
        received = self._exchange(
            self._given, self._taken, lambda cargo: given[cargo.place][cargo.part]
        )
        local: dict[int, Tensor] = {cargo.place: view for cargo, view in received}
        for i, each in enumerate(self.shards):
            if i not in local:  # there is nothing of it here
                shape = tuple(part.stop - part.start for part in each.parts[self.team.me])
                local[i] = torch.empty(shape, dtype=self.dtypes[i], device=self.team.device)
        return [local[i] for i in range(len(self.shards))]

    def _exchange(
        self, leaving: Sequence[Load], coming: Sequence[Load], find: Any
    ) -> Iterator[tuple[Cargo, Tensor]]:
        """Sends what `find` returns of the cargo that leaves, and yields what comes."""
        order = self.team.order
        sent, found = (
            torch.empty(
                sum(load.nbytes for load in loads), dtype=torch.uint8, device=self.team.device
            )
            for loads in (leaving, coming)
        )
        counts = [[loads[i].nbytes for i in order] for loads in (leaving, coming)]
        _copy_all(
            (cargo.view(buffer), find(cargo))
            for i, buffer in zip(order, sent.split(counts[0]), strict=True)
            for cargo in leaving[i]
        )
        torch.distributed.all_to_all_single(found, sent, counts[1], counts[0], self.team.group)
        for i, buffer in zip(order, found.split(counts[1]), strict=True):
            for cargo in coming[i]:
                yield cargo, cargo.view(buffer)


def _copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair into the first."""
    targets, tensors = [], []
    for target, tensor in pairs:
        targets.append(target)
        tensors.append(tensor)
    if targets:
        torch._foreach_copy_(targets, tensors)
