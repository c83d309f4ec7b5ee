"""Tensors that are sharded over processes (`DTensor`): the parts here, and sums over all parts.

Which tensors are sharded is known by their attributes, so that nothing of `torch.distributed` is
imported where none are; a torch without it works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

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


def join_norms(
    parts: list[Tensor], tensors: Sequence[Any], order: float, over: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Makes norms of tensors from those of their parts in each process.

    There is one collective for each dimension of a mesh, for all tensors together: none for a
    dimension that splits nothing that a norm is taken over.

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
    pending: dict[tuple[Any, int], list[int]] = {}
    for i, (tensor, dims) in enumerate(zip(tensors, over, strict=True)):
        for k in splits(tensor, dims):
            pending.setdefault((tensor.device_mesh, k), []).append(i)
    for (mesh, k), places in pending.items():
        some = [result[i] for i in places]
        for i, joined in zip(places, _reduced(some, order, mesh.get_group(k)), strict=True):
            result[i] = joined
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


def linear_in_parts(
    function: Callable[[list[Tensor]], Tensor], tensors: Sequence[Tensor]
) -> Tensor:
    """Returns a linear function of tensors, of sharded ones from the parts that are here.

    The function gets tensors of the full shapes, which are zero where another process has the
    elements, and its results are summed over processes: one collective for each dimension of a
    mesh. Without sharded tensors it gets these as they are.

    Example:
        >>> linear_in_parts(torch.cat, [torch.ones(1), torch.zeros(1)])
        tensor([1., 0.])
    """
    meshes = [getattr(tensor, "device_mesh", None) for tensor in tensors]
    total: Any = None
    for mesh in dict.fromkeys(meshes):
        given = [
            _spread(tensor) if its == mesh else local(tensor).new_zeros(tensor.shape)
            for tensor, its in zip(tensors, meshes, strict=True)
        ]
        result = function(given)
        for group in [] if mesh is None else mesh.get_all_groups():
            torch.distributed.all_reduce(result, group=group)
        total = result if total is None else total + result
    return total  # type: ignore[no-any-return]


def _spread(tensor: Any) -> Tensor:
    """Returns a tensor of full shape with the part that is here; of replicas, the first has it."""
    if not is_sharded(tensor):
        return tensor  # type: ignore[no-any-return]
    part = local(tensor).reshape(-1)
    full = part.new_zeros(tensor.numel())
    place = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    if not any(at and getattr(each, "dim", None) is None for at, each in place):
        numbers = torch.arange(tensor.numel(), device=full.device).view(tensor.shape)
        full[local(sharded_as(numbers, tensor)).reshape(-1)] = part
    return full.view(tensor.shape)


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


def _reduced(parts: list[Tensor], order: float, group: Any) -> list[Tensor]:
    """Returns the norms of what processes have norms of, from one collective of one vector."""
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    vector = torch.cat([part.reshape(-1).to(dtype) for part in parts])
    if order == math.inf:  # of NaN and a number, a backend's maximum may be the number
        bad = vector.isnan()
        both = torch.stack([torch.where(bad, 0.0, vector), bad.to(dtype)])
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group)
        vector = torch.where(both[1] > 0, math.nan, both[0])
    else:
        vector = vector**order
        torch.distributed.all_reduce(vector, group=group)
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
