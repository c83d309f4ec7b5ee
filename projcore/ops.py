"""Small helpers that many plugins need: checks, complex numbers as pairs, lists of tensors, norms.

Factors may be numbers or, in a trace of `torch.compile`, 0-d tensors: torch's ``_foreach``
functions take only numbers, and here is what takes either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from projcore._shards import (
    as_part,
    by_parts,
    is_sharded,
    join_norms,
    linear_in_parts,
    local,
    part_of,
    sharded_as,
    splits,
    spread_lerp,
    spread_zeros,
    sums_of_parts,
    zeros_over,
)
from projcore.errors import ArgumentError

__all__ = [
    "add_scaled",
    "add_squares_",
    "alike",
    "as_given",
    "as_part",
    "as_real",
    "at_once",
    "by_kind",
    "by_parts",
    "clamp_min_",
    "copy_",
    "empty_like",
    "fill_where",
    "is_sharded",
    "lerp",
    "lerp_",
    "linear_in_parts",
    "local",
    "means_over",
    "norms",
    "norms_of_kinds",
    "norms_over",
    "once",
    "part_of",
    "prefers_stacks",
    "refuse_complex",
    "require_choice",
    "sharded_as",
    "signs",
    "slices",
    "splits",
    "spread_lerp",
    "spread_zeros",
    "stack",
    "stacked",
    "sums_of_parts",
    "times",
    "unsharded",
    "unstacked",
    "wide",
    "zeros_over",
]


def require_choice(owner: object, name: str, value: object, choices: Any) -> None:
    """Raises unless a value is one of a `Literal`, or of a sequence.

    Example:
        >>> require_choice("GaLore", "side", "left", ["left", "right"])
    """
    words: Sequence[object] = get_args(choices) or choices
    if value not in words:
        who = owner if isinstance(owner, str) else type(owner).__name__
        raise ArgumentError(
            f"{who}({name}={value!r}) is not known. {name} is one of {', '.join(map(repr, words))}."
        )


def as_real(tensors: list[Tensor]) -> list[Tensor]:
    """Views complex tensors as real ones, the two parts along a last dimension.

    So torch.optim treats them.
    """
    return [
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        for tensor in tensors
    ]


def as_given(results: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Undoes `as_real` for results made from its tensors."""
    return [
        torch.view_as_complex(result.contiguous()) if tensor.is_complex() else result
        for result, tensor in zip(results, tensors, strict=True)
    ]


def refuse_complex(owner: object, tensor: Tensor) -> None:
    """Raises if a tensor is complex, for modules that have no meaning for it."""
    if tensor.is_complex():
        raise ArgumentError(
            f"{owner} was given a complex tensor of shape {tuple(tensor.shape)}. It works on real "
            "numbers. Put it inside ViewAsReal, or give it only real tensors."
        )


def once(factors: list[Any]) -> list[Any]:
    """Returns numbers as they are; in a trace, has each computed once and not for each element.

    The compiler would inline what computes a factor, powers too, into the loop over the elements
    that it multiplies, which was six times slower. A stack is stored first.
    """
    return list(torch.stack(factors).unbind()) if isinstance(factors[0], Tensor) else factors


def add_scaled(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> list[Tensor]:
    """Returns ``x + factor * y``."""
    if isinstance(factor, Tensor):  # compiled, it is one pass anyway
        return list(torch._foreach_add(tensors, torch._foreach_mul(others, factor)))
    return list(torch._foreach_add(tensors, others, alpha=factor))


def add_squares_(targets: list[Tensor], tensors: list[Tensor], factor: float | Tensor) -> None:
    """Adds squares: ``t += factor * x * x``; a negative factor subtracts."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(
            targets, torch._foreach_mul(torch._foreach_mul(tensors, tensors), factor)
        )
    else:
        torch._foreach_addcmul_(targets, tensors, tensors, factor)


def lerp_(targets: list[Tensor], tensors: list[Tensor], weight: Any) -> None:
    """Moves targets towards tensors: ``t += weight * (x - t)``; there may be a weight for each."""
    if _traced(weight):
        step = torch._foreach_sub(tensors, targets)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(targets, step)
    else:
        torch._foreach_lerp_(targets, tensors, weight)


def lerp(tensors: list[Tensor], ends: list[Tensor], weight: Any) -> list[Tensor]:
    """Returns tensors moved towards ends: ``t + weight * (e - t)``."""
    if _traced(weight):
        step = torch._foreach_sub(ends, tensors)
        torch._foreach_mul_(step, weight)
        return list(torch._foreach_add(tensors, step))
    return list(torch._foreach_lerp(tensors, ends, weight))


def clamp_min_(tensors: list[Tensor], bound: Any) -> None:
    """Raises elements to a bound: ``t = max(t, b)``; there may be a bound for each."""
    if _traced(bound):
        bounds = bound if isinstance(bound, list) else [bound] * len(tensors)
        for tensor, least in zip(tensors, bounds, strict=True):
            tensor.clamp_(min=least)
    else:
        torch._foreach_clamp_min_(tensors, bound)


def copy_(targets: list[Tensor], tensors: list[Tensor]) -> None:
    """Copies tensors into others; torch has no ``_foreach_copy_`` of sharded ones."""
    if any(hasattr(target, "placements") for target in targets):
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
    else:
        torch._foreach_copy_(targets, tensors)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors of one shape as a stack: a view if they are the slices of one tensor.

    A stack that is a view shares their memory, so treat it as read-only.

    Example:
        >>> whole = torch.ones(2, 3)
        >>> stack(whole.unbind()).data_ptr() == whole.data_ptr()
        True
    """
    if not _are_slices(tensors):
        return torch.stack(list(tensors))
    first = tensors[0]
    return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))


def prefers_stacks(tensor: Tensor) -> bool:
    """Whether an operation on a stack of such tensors takes less time than one on each of them.

    It does where launches are expensive, on accelerators. In a trace the compiler sees to that, and
    sharded tensors have parts of several shapes.

    Example:
        >>> prefers_stacks(torch.ones(2, 2))
        False
    """
    few = tensor.is_cpu or tensor.is_meta or torch.compiler.is_compiling()
    return not few and not is_sharded(tensor)


def slices(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Returns the places of tensors in runs of which `stack` returns a view.

    Where some of them do not prefer stacks, each is a run.

    Example:
        >>> slices(torch.ones(2, 2).unbind())
        [[0], [1]]
    """
    if not all(map(prefers_stacks, tensors)):
        return [[i] for i in range(len(tensors))]
    found: dict[Hashable, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((tensor.untyped_storage()._cdata, tensor.shape), []).append(i)
    runs: list[list[int]] = []
    for places in found.values():
        first, *others = sorted(places, key=lambda i: tensors[i].storage_offset())
        runs.append([first])
        for i in others:
            if _are_slices([tensors[runs[-1][-1]], tensors[i]]):
                runs[-1].append(i)
            else:
                runs.append([i])
    return runs


def stacked(tensors: Sequence[Tensor], runs: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns runs of tensors, each of one shape, as stacks; a single tensor is returned as it is.

    All are of one dtype and on one device, and copied at once.

    Example:
        >>> stacked([torch.zeros(1), torch.ones(1), torch.ones(1)], [[0], [1, 2]])
        [tensor([0.]), tensor([[1.],
                [1.]])]
    """
    result: list[Tensor] = []
    parts: list[Tensor] = []
    given: list[Tensor] = []
    for places in runs:
        some = [tensors[i] for i in places]
        if len(some) == 1:
            result += some
        else:
            result.append(some[0].new_empty(len(some), *some[0].shape))
            parts += result[-1].unbind()
            given += some
    if parts:
        torch._foreach_copy_(parts, given)
    return result


def unstacked(stacks: Sequence[Tensor], runs: Sequence[Sequence[int]]) -> list[Tensor]:
    """Undoes `stacked` by views.

    Example:
        >>> unstacked([torch.zeros(1), torch.ones(2, 1)], [[1], [0, 2]])
        [tensor([1.]), tensor([0.]), tensor([1.])]
    """
    found: dict[int, Tensor] = {}
    for each, places in zip(stacks, runs, strict=True):
        found.update(zip(places, [each] if len(places) == 1 else each.unbind(), strict=True))
    return [found[i] for i in range(len(found))]


def empty_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns uninitialized tensors; for the slices of one tensor, the slices of a new one."""
    found: dict[Hashable, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault((tensor.untyped_storage()._cdata, tensor.shape), []).append(i)
    result: list[Any] = [None] * len(tensors)
    for places in found.values():
        some = [tensors[i] for i in places]
        if len(some) > 1 and _are_slices(some):
            made: Sequence[Tensor] = some[0].new_empty(len(some), *some[0].shape).unbind()
        else:
            made = [torch.empty_like(tensor) for tensor in some]
        for i, each in zip(places, made, strict=True):
            result[i] = each
    return result


def _are_slices(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are the slices, in order, of one contiguous tensor."""
    if torch.compiler.is_compiling():  # storages are not traced
        return False
    first = tensors[0]
    storage, start, size = first.untyped_storage()._cdata, first.storage_offset(), first.numel()
    return all(
        tensor.is_contiguous()
        and tensor.untyped_storage()._cdata == storage
        and tensor.storage_offset() == start + k * size
        for k, tensor in enumerate(tensors)
    )


def at_once(function: Callable[..., Tensor], *lists: list[Tensor]) -> list[Tensor]:
    """Returns an elementwise function of small tensors, such as norms, by one call if it can be.

    They are of one dtype and on one device. Those at the same place of several lists have one
    shape; where all have, there is one call.

    Example:
        >>> at_once(torch.maximum, [torch.zeros(2), torch.ones(2)], [torch.ones(2), torch.zeros(2)])
        [tensor([1., 1.]), tensor([1., 1.])]
    """
    if len({tensor.shape for tensor in lists[0]}) > 1:
        return [function(*tensors) for tensors in zip(*lists, strict=True)]
    return list(function(*map(torch.stack, lists)).unbind())


def fill_where(tensors: list[Tensor], flags: list[Any], value: float) -> list[Tensor]:
    """Fills the tensors whose flag is true, in place if flags are no tensors."""
    if isinstance(flags[0], Tensor):
        return [
            torch.where(flag, value, tensor) for flag, tensor in zip(flags, tensors, strict=True)
        ]
    for flag, tensor in zip(flags, tensors, strict=True):
        if flag:
            tensor.fill_(value)
    return tensors


def signs(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the sign of each element; NaN of one that is not finite, where torch gives 0, 1, -1.

    What is behind a sign would otherwise not see that memory before it is lost.
    """
    if any(tensor.is_complex() for tensor in tensors):
        return [tensor.sgn().add_(tensor, alpha=0) for tensor in tensors]
    result = torch._foreach_sign(tensors)
    torch._foreach_add_(result, tensors, alpha=0)  # zero times Inf or NaN is NaN
    return list(result)


def norms(tensors: list[Tensor], batch_dims: int = 0, order: float = 2.0) -> list[Tensor]:
    """Returns the norm of each tensor, 0-d, or of each item.

    Where the first `batch_dims` dimensions index items, norms have the dimensions of the tensor,
    and broadcast. Those of sharded tensors (`DTensor`), which may stand beside others, take one
    collective for each mesh, for all together, and are the same in each process.

    Example:
        >>> norms([torch.tensor([[3.0, 4.0], [0.0, 1.0]])], batch_dims=1)
        [tensor([[5.],
                [1.]])]
    """
    if any(map(is_sharded, tensors)):
        over = [range(batch_dims, tensor.ndim) for tensor in tensors]
        parts = by_kind(lambda some: norms(some, batch_dims, order), list(map(local, tensors)))
        return join_norms(parts, tensors, order, over)
    if batch_dims:
        return norms_over(tensors, order, [range(batch_dims, each.ndim) for each in tensors])
    if order == math.inf and any(tensor.numel() == 0 for tensor in tensors):
        return [_norm_over(tensor.reshape(-1), order, (0,)).reshape(()) for tensor in tensors]
    return list(torch._foreach_norm(tensors, order))


def norms_of_kinds(tensors: list[Tensor], order: float = 2.0) -> list[Tensor]:
    """Returns the norm of each tensor, 0-d; they may be of several dtypes, devices and meshes."""
    if any(map(is_sharded, tensors)):  # of several dtypes, norms still take one collective
        return norms(tensors, order=order)
    return by_kind(lambda some: norms(some, order=order), tensors)


def norms_over(tensors: list[Tensor], order: float, dims: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns the norms over some dimensions of each tensor, which stay with size 1.

    The dimensions are counted from 0; where there are none, it is absolute values. Sharded tensors
    are as in `norms`; what their norms are not taken over stays sharded.

    Example:
        >>> norms_over([torch.tensor([[3.0, 1.0], [4.0, 0.0]])], 2.0, [(0,)])
        [tensor([[5., 1.]])]
    """
    parts = [
        _norm_over(local(tensor), order, tuple(over)) if len(over) else local(tensor).abs()
        for tensor, over in zip(tensors, dims, strict=True)
    ]
    return join_norms(parts, tensors, order, dims) if any(map(is_sharded, tensors)) else parts


def means_over(tensors: Sequence[Tensor], dims: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns the means over some dimensions of each tensor, which stay with size 1.

    The dimensions are counted from 0, and there is at least one. Sharded tensors are as in `norms`;
    what their means are not taken over stays sharded.

    Example:
        >>> means_over([torch.tensor([[3.0, 1.0], [5.0, 1.0]])], [(0,)])
        [tensor([[4., 1.]])]
    """
    if not any(map(is_sharded, tensors)):
        return [t.mean(tuple(over), keepdim=True) for t, over in zip(tensors, dims, strict=True)]
    parts = []
    for tensor, over in zip(tensors, dims, strict=True):
        wide = torch.promote_types(tensor.dtype, torch.float32)
        count = max(1, math.prod(tensor.shape[i] for i in over))
        parts.append(local(tensor).sum(tuple(over), keepdim=True, dtype=wide) / count)
    means = join_norms(parts, tensors, 1.0, dims)
    return [mean.to(each.dtype) for mean, each in zip(means, tensors, strict=True)]


def alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Returns the places of tensors that torch's ``_foreach`` functions take together.

    They are of one dtype, on one device, and all of one mesh (`DTensor`) or not sharded.

    Example:
        >>> alike([torch.zeros(1), torch.zeros(1).double(), torch.zeros(2)])
        [[0, 2], [1]]
    """
    places: dict[Hashable, list[int]] = {}
    for i, tensor in enumerate(tensors):
        mesh = getattr(tensor, "device_mesh", None)
        places.setdefault((tensor.dtype, tensor.device, mesh), []).append(i)
    return list(places.values())


def by_kind(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], *others: Sequence[Tensor]
) -> list[Tensor]:
    """Returns what a function makes of tensors, which it gets as lists of those that are alike.

    Of other lists it gets what is at the same places.

    Example:
        >>> by_kind(torch._foreach_neg, [torch.ones(1), torch.ones(1).double()])
        [tensor([-1.]), tensor([-1.], dtype=torch.float64)]
    """
    kinds = alike(tensors)
    if len(kinds) == 1:
        return list(function(list(tensors), *map(list, others)))
    results: list[Any] = [None] * len(tensors)
    for places in kinds:
        some = ([each[i] for i in places] for each in (tensors, *others))
        for i, result in zip(places, function(*some), strict=True):
            results[i] = result
    return results


def times(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    """Returns tensors, also on several devices, multiplied by one number, in their own dtypes."""

    def multiplied(some: list[Tensor]) -> list[Tensor]:
        made = torch._foreach_mul(some, factor.to(some[0].device))
        dtype = some[0].dtype  # a 0-d tensor times a number of more bits has more bits
        return [each if each.dtype == dtype else each.to(dtype) for each in made]

    return by_kind(multiplied, tensors)


def wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32, or as it is if its dtype holds no less: for decompositions.

    Example:
        >>> wide(torch.ones(1, dtype=torch.bfloat16)), wide(torch.ones(1, dtype=torch.complex128))
        (tensor([1.]), tensor([1.+0.j], dtype=torch.complex128))
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unsharded(tensor: Any) -> Any:
    """Returns a sharded tensor (`DTensor`) put together from its shards; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _norm_over(tensor: Tensor, order: float, dims: tuple[int, ...]) -> Tensor:
    if order == math.inf and tensor.numel() == 0:  # there is no largest element; the norm is 0
        return tensor.abs().sum(dims, keepdim=True)
    result: Tensor = torch.linalg.vector_norm(tensor, order, dims, keepdim=True)
    return result


def _traced(weight: Any) -> bool:
    return isinstance(weight[0] if isinstance(weight, list) else weight, Tensor)
