"""Tensors that are sharded over processes (`DTensor`): the parts here, and sums over all parts.

Which tensors are sharded is known by their attributes, so that nothing of `torch.distributed` is
imported where none are; a torch without it works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes (`DTensor`)."""
    return hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:
    """Returns the part of a sharded tensor that is in this process; any other tensor as it is.

    Sums over processes that are still to be taken (`Partial`) are taken first.
    """
    if not is_sharded(tensor):
        return tensor  # type: ignore[no-any-return]
    if any(each.is_partial() for each in tensor.placements):
        tensor = tensor.redistribute(placements=_without(tensor, ()))
    part: Tensor = tensor.to_local()
    return part


def splits(tensor: Any, over: Sequence[int]) -> list[int]:
    """Returns the dimensions of the mesh that split a tensor along some of its dimensions."""
    placements = getattr(tensor, "placements", ())
    return [k for k, each in enumerate(placements) if getattr(each, "dim", None) in over]


def group_of(mesh: Any, dims: Sequence[int]) -> Any:
    """Returns the group of the processes that differ from this one in some dimensions of a mesh.

    Of several dimensions it is made when it is first needed, which all of these processes do
    together, and ends with `destroy_process_group`.
    """
    if len(dims) == 1:
        return mesh.get_group(dims[0])
    place = enumerate(mesh.get_coordinate())
    along = tuple(slice(None) if k in dims else at for k, at in place)
    ranks = tuple(mesh.mesh[along].flatten().tolist())
    world = torch.distributed.group.WORLD
    if len(ranks) == torch.distributed.get_world_size():
        return world
    names = _GROUPS.setdefault(world, {})
    if ranks not in names:
        group: Any = torch.distributed.new_group(list(ranks), use_local_synchronization=True)
        names[ranks] = group.group_name
    torchs: Any = torch.distributed.distributed_c10d
    return torchs._resolve_process_group(names[ranks])


# Names, since a group that is kept outlives its destruction; by the world that they are part of.
_GROUPS: WeakKeyDictionary[Any, dict[tuple[int, ...], str]] = WeakKeyDictionary()


def join_norms(
    parts: list[Tensor], tensors: Sequence[Any], order: float, over: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Makes norms of tensors from those of their parts in each process.

    There is one collective for each mesh, for all tensors together, among the processes that have
    different parts; none if no norm is taken over a dimension that is split.

    Args:
        parts: The norms of the parts here: 0-d, or with the dimensions of the tensor.
        tensors: The tensors, sharded or not.
        order: The order of the norm.
        over: The dimensions of each tensor that its norm is taken over.

    Returns:
        Norms that are 0-d as plain tensors, equal in all processes; others sharded as the rest of
        their tensor is.
    """
    result = list(parts)
    for mesh, places in _of_meshes(
        [i for i, t in enumerate(tensors) if splits(t, over[i])], tensors
    ):
        across = _union(splits(tensors[i], over[i]) for i in places)
        given = [_padded(parts[i], tensors[i], over[i], across) for i in places]
        joined = _reduced(given, order, mesh, across)
        for i, norm in zip(places, joined, strict=True):
            alike = norm.shape == parts[i].shape
            result[i] = norm if alike else norm[part_of(tensors[i], over[i])]
    return [
        as_part(norm, tensor, dims) if norm.ndim and is_sharded(tensor) else norm
        for norm, tensor, dims in zip(result, tensors, over, strict=True)
    ]


def sums_of_parts(parts: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns sums over processes of 0-d tensors that each has from its part of a tensor.

    Of tensors that are not sharded, they are as given. It takes collectives as `norms` does.
    """
    if not any(map(is_sharded, tensors)):
        return parts
    return join_norms(parts, tensors, 1.0, [range(tensor.ndim) for tensor in tensors])


def spread_zeros(tensor: Any, over: Sequence[int]) -> Tensor:
    """Returns zeros of the shape that sums over some dimensions have, for averages of these.

    Dimensions of a mesh that split the tensor along these split the sums along the longest of the
    others. So no process has more than its share, as it would if they were replicated.
    """
    shape = torch.Size([1 if i in over else size for i, size in enumerate(tensor.shape)])
    joined = splits(tensor, over)
    if not joined or shape.numel() == 1:
        return zeros_over(tensor, over)
    from torch.distributed.tensor import DTensor, Shard

    longest = max(range(len(shape)), key=lambda i: shape[i])
    moved = {*joined, *splits(tensor, [longest])}
    placements = [Shard(longest) if k in moved else p for k, p in enumerate(tensor.placements)]
    mesh = tensor.device_mesh
    part = _part(shape, tuple(placements), tuple(mesh.shape), tuple(mesh.get_coordinate()))
    empty = torch.empty(shape, device="meta")
    zeros = local(tensor).new_zeros(empty[part].shape)
    result: Tensor = DTensor.from_local(
        zeros, mesh, placements, run_check=False, shape=shape, stride=empty.stride()
    )
    return result


def spread_lerp(
    averages: list[Tensor],
    parts: list[Tensor],
    tensors: Sequence[Any],
    over: Sequence[Sequence[int]],
    weights: Sequence[Any],
) -> list[Tensor]:
    """Moves averages of sums over processes towards these: ``a += w (sum - a)``.

    Each process adds its part of the average to its part of the sum, so one collective for each
    mesh gives all of them the new average, of which they keep a part.

    Args:
        averages: Made by `spread_zeros`.
        parts: What each process has of the sums, of the shape that those of its part have.
        tensors: The tensors.
        over: The dimensions of each that sums are taken over.
        weights: The weight of each sum.

    Returns:
        Plain tensors: the full averages of what processes share, and the parts of others.
    """
    result = list(map(local, averages))
    shared = [i for i, tensor in enumerate(tensors) if splits(tensor, over[i])]
    for i in set(range(len(tensors))).difference(shared):
        result[i].mul_(1 - weights[i]).add_(parts[i] * weights[i])
    for mesh, places in _of_meshes(shared, tensors):
        across = _union(splits(tensors[i], over[i]) for i in places)
        given = [
            _padded(_wide(result[i]), averages[i], (), across) * (1 - weights[i])
            + _padded(_wide(parts[i]), tensors[i], over[i], across) * weights[i]
            for i in places
        ]
        joined = _reduced(given, 1.0, mesh, across)
        for i, average in zip(places, joined, strict=True):
            result[i].copy_(average[part_of(averages[i])])
            result[i] = average.to(result[i].dtype)
    return result


def linear_in_parts(
    function: Callable[[list[Tensor]], Tensor], tensors: Sequence[Tensor]
) -> Tensor:
    """Returns a linear function of tensors, of sharded ones from the parts that are here.

    The function gets tensors of the full shapes, which are zero where another process has the
    elements, and its results are summed over processes: one collective for each mesh. Without
    sharded tensors it gets these as they are.

    Example:
        >>> linear_in_parts(torch.cat, [torch.ones(1), torch.zeros(1)])
        tensor([1., 0.])
    """
    meshes = [getattr(tensor, "device_mesh", None) for tensor in tensors]
    total: Any = None
    for mesh in dict.fromkeys(meshes):
        across = _union(
            splits(tensor, range(tensor.ndim))
            for tensor, its in zip(tensors, meshes, strict=True)
            if its == mesh
        )
        given = [
            _padded(local(tensor), tensor, (), across)
            if its == mesh
            else local(tensor).new_zeros(tensor.shape)
            for tensor, its in zip(tensors, meshes, strict=True)
        ]
        result = function(given)
        if across:
            _all_reduce(result, mesh, across)
        total = result if total is None else total + result
    return total  # type: ignore[no-any-return]


def _of_meshes(places: Sequence[int], tensors: Sequence[Any]) -> Iterable[tuple[Any, list[int]]]:
    """Returns the places of sharded tensors by their mesh."""
    found: dict[Any, list[int]] = {}
    for i in places:
        found.setdefault(tensors[i].device_mesh, []).append(i)
    return found.items()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _union(found: Iterable[Sequence[int]]) -> list[int]:
    return sorted({k for each in found for k in each})


def _padded(part: Tensor, tensor: Any, over: Sequence[int], across: Sequence[int]) -> Tensor:
    """Returns what processes that differ along some dimensions of a mesh sum to something full.

    That is zero where another of them has a part of a tensor, or of what is taken over some
    dimensions of it; of replicas, the first has it.
    """
    others = [k for k in across if k not in splits(tensor, over)]
    if not others:
        return part
    place = tensor.device_mesh.get_coordinate()
    kept = splits(tensor, range(tensor.ndim))
    if part.ndim:
        shape = [1 if i in over else size for i, size in enumerate(tensor.shape)]
        full = part.new_zeros(shape)
        full[part_of(tensor, over)] = part
    else:
        full = part
    return full.new_zeros(full.shape) if any(place[k] for k in others if k not in kept) else full


def part_of(tensor: Any, over: Sequence[int] = ()) -> tuple[Any, ...]:
    """Returns the index of the part that is here in a full tensor, which has size 1 along some."""
    shape = tuple(1 if i in over else size for i, size in enumerate(tensor.shape))
    placements = tuple(_without(tensor, over))
    mesh = tensor.device_mesh
    return _part(shape, placements, tuple(mesh.shape), tuple(mesh.get_coordinate()))


@lru_cache(maxsize=4096)
def _part(
    shape: tuple[int, ...],
    placements: tuple[Any, ...],
    counts: tuple[int, ...],
    place: tuple[int, ...],
) -> tuple[Any, ...]:
    """Returns the index of the part of the process at a place of a mesh."""
    found = indices(shape, placements, counts, place)
    ends = [(int(index[0]), int(index[-1]) + 1) if len(index) else (0, 0) for index in found]
    if all(end - first == len(index) for (first, end), index in zip(ends, found, strict=True)):
        return tuple(slice(*each) for each in ends)
    return tuple(index.view(-1, *[1] * (len(found) - 1 - i)) for i, index in enumerate(found))


def indices(
    shape: Sequence[int], placements: Sequence[Any], counts: Sequence[int], place: Sequence[int]
) -> list[Tensor]:
    """Returns which rows, columns and so on of a tensor are at a place of a mesh.

    Args:
        shape: The shape of the tensor.
        placements: Along which dimension each dimension of the mesh splits it, if it does.
        counts: The shape of the mesh.
        place: The place.
    """
    found = [torch.arange(size, device="cpu") for size in shape]
    for placement, count, coordinate in zip(placements, counts, place, strict=True):
        if hasattr(placement, "dim"):
            # FSDP2 splits each part of a dimension that tensor parallelism splits, too.
            pieces = found[placement.dim].chunk(getattr(placement, "split_factor", 1))
            chunks = [_chunk(each, count, coordinate) for each in pieces]
            found[placement.dim] = torch.cat(chunks)
    return found


def _chunk(index: Tensor, count: int, which: int) -> Tensor:
    size = -(-len(index) // count)
    return index[which * size : (which + 1) * size]


def by_rows(tensors: Sequence[Tensor], ranks: int) -> list[Tensor]:
    """Returns tensors without storage, as the first of processes has them that need not exist.

    Those with dimensions are sharded by rows.

    Args:
        tensors: The full tensors.
        ranks: The number of processes.

    Example:
        >>> (tensor,) = by_rows([torch.ones(7, 2)], ranks=4)
        >>> tensor.shape, tensor.to_local().shape
        (torch.Size([7, 2]), torch.Size([2, 2]))
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh("cpu", torch.arange(ranks), _init_backend=False, _rank=0)
    result: list[Tensor] = []
    for tensor in tensors:
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if not full.ndim:
            result.append(full)
            continue
        part = full[_part(tuple(full.shape), (Shard(0),), (ranks,), (0,))]
        result.append(
            DTensor.from_local(
                part, mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride()
            )
        )
    return result


def sharded_as(tensor: Tensor, like: Any) -> Tensor:
    """Returns a tensor that all processes have in full, sharded as another is; nothing is sent."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor

    full: Any = DTensor.from_local(tensor, like.device_mesh, run_check=False)
    result: Tensor = full.redistribute(placements=like.placements)
    return result


def zeros_over(tensor: Any, over: Sequence[int]) -> Tensor:
    """Returns zeros of the shape that norms over some dimensions have, and sharded as they are."""
    shape = [1 if i in over else size for i, size in enumerate(local(tensor).shape)]
    zeros = local(tensor).new_zeros(shape)
    return as_part(zeros, tensor, over) if is_sharded(tensor) else zeros


def by_parts(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], *others: Sequence[Tensor]
) -> list[Tensor]:
    """Returns an elementwise function of tensors, for sharded ones from the parts that are here.

    Others may broadcast to the tensors. By itself torch would put together (2.13) what is split
    along a dimension of size 1, such as the bias of one output, where something broadcasts to it.

    Example:
        >>> by_parts(torch._foreach_mul, [torch.ones(1, 2)], [torch.tensor([[2.0]])])
        [tensor([[2., 2.]])]
    """
    if not any(map(is_sharded, tensors)):
        return list(function(tensors, *others))
    parts = function(*(list(map(local, each)) for each in (tensors, *others)))
    return [
        as_part(part, tensor) if is_sharded(tensor) else part
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def _all_reduce(tensor: Tensor, mesh: Any, across: Sequence[int], largest: bool = False) -> None:
    """Sums a tensor over processes, or takes the largest; without values, it is only recorded."""
    if tensor.is_meta:
        for found in _RECORDS:
            found.append(Reduction(tensor.nbytes, math.prod(mesh.shape[k] for k in across)))
        return
    kind = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
    torch.distributed.all_reduce(tensor, kind, group_of(mesh, across))


class Reduction(NamedTuple):
    """A collective in which processes sum a vector (`all_reduce`).

    Attributes:
        bytes: The bytes of the vector.
        ranks: The number of processes.
    """

    bytes: int
    ranks: int

    @property
    def sent(self) -> int:
        """The bytes that each process sends: twice all parts of the vector but one, rounded up."""
        return -(-2 * self.bytes * (self.ranks - 1) // self.ranks)


@contextmanager
def recorded() -> Iterator[list[Reduction]]:
    """Records the reductions of tensors without storage; nothing is sent for these.

    Example:
        >>> with recorded() as found:
        ...     total = sums_of_parts([torch.ones((), device="meta")], [torch.ones(2)])
        >>> found  # the tensor isn't sharded
        []
    """
    found: list[Reduction] = []
    _RECORDS.append(found)
    try:
        yield found
    finally:
        _RECORDS.pop()


_RECORDS: list[list[Reduction]] = []


def _reduced(parts: list[Tensor], order: float, mesh: Any, across: Sequence[int]) -> list[Tensor]:
    """Returns the norms of what processes have norms of, from one collective of one vector."""
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    vector = torch.cat([part.reshape(-1).to(dtype) for part in parts])
    if order == math.inf:  # of NaN and a number, a backend's maximum may be the number
        bad = vector.isnan()
        both = torch.stack([torch.where(bad, 0.0, vector), bad.to(dtype)])
        _all_reduce(both, mesh, across, largest=True)
        vector = torch.where(both[1] > 0, math.nan, both[0])
    else:
        vector = vector**order
        _all_reduce(vector, mesh, across)
        vector = vector ** (1 / order)
    pieces = vector.split([part.numel() for part in parts])
    return [
        piece.view(part.shape).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)
    ]


def as_part(part: Tensor, tensor: Any, over: Sequence[int] = ()) -> Tensor:
    """Returns the tensor of which this is the part here, sharded as another is.

    Some dimensions, those that something was taken over, have size 1, and are not split.
    """
    if not over and not any(each.is_partial() for each in tensor.placements):
        # By its constructor it takes a thirtieth of the time of `from_local` (torch 2.13).
        made: Tensor = type(tensor)(part, tensor._spec, requires_grad=False)
        return made
    from torch.distributed.tensor import DTensor

    shape = torch.Size([1 if i in over else size for i, size in enumerate(tensor.shape)])
    stride = torch.empty(shape, device="meta").stride() if over else tensor.stride()
    result: Tensor = DTensor.from_local(
        part,
        tensor.device_mesh,
        _without(tensor, over),
        run_check=False,
        shape=shape,
        stride=stride,
    )
    return result


def _without(tensor: Any, over: Sequence[int]) -> list[Any]:
    """Returns the placements of a tensor that is not split along some dimensions any more."""
    from torch.distributed.tensor import Replicate

    joined = splits(tensor, over)
    return [
        Replicate() if k in joined or each.is_partial() else each
        for k, each in enumerate(tensor.placements)
    ]
