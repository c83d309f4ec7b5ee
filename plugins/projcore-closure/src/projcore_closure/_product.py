"""Inner products, norms and sums of lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from projcore.ops import alike, by_kind, local, norms_of_kinds, sums_of_parts


def flat(tensor: Tensor) -> Tensor:
    """Flattens a tensor; complex elements become their real and imaginary parts."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(-1)


def dot(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    r"""Returns :math:`\mathrm{Re} \sum_i \langle x_i, y_i \rangle` of two lists of tensors.

    Tensors of less than 32 bits are multiplied and summed in float32, others in their own dtype;
    the sums of the tensors are added in float64. All sharded tensors share one collective.

    Example:
        >>> dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        11.0
    """
    parts = [
        torch.dot(wide(flat(local(one))), wide(flat(local(other))))
        for one, other in zip(ones, others, strict=True)
    ]
    return sum(_numbers(sums_of_parts(parts, ones)), 0.0)


def size(tensors: Sequence[Tensor]) -> float:
    r"""Returns :math:`\sum_i \|x_i\|_1`; complex elements count as real and imaginary parts.

    Example:
        >>> size([torch.tensor([1.0, -2.0]), torch.tensor(0.5)])
        3.5
    """
    parts = [flat(local(tensor)).abs().sum(dtype=torch.float64) for tensor in tensors]
    return sum(_numbers(sums_of_parts(parts, tensors)), 0.0)


def peaks(tensors: Sequence[Tensor]) -> list[float]:
    """Returns the largest absolute value in each tensor, 0 if it is empty.

    Example:
        >>> peaks([torch.tensor([1.0, -2.0]), torch.tensor(0.5), torch.tensor([])])
        [2.0, 0.5, 0.0]
    """
    if not tensors:
        return []
    return _numbers(norms_of_kinds(list(tensors), math.inf))


def plus(ones: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> list[Tensor]:
    """Returns ``x + factor * y`` in the dtypes of `ones`; the factor may exceed float16's range.

    Example:
        >>> small = torch.tensor([1e-6], dtype=torch.float16)
        >>> plus([torch.zeros(1)], [small], 1e6)
        [tensor([1.0133])]
    """

    def added(some: list[Tensor], more: list[Tensor]) -> list[Tensor]:
        sums = torch._foreach_add(some, [wide(each) for each in more], alpha=factor)
        return [each.to(one.dtype) for each, one in zip(sums, some, strict=True)]

    return by_kind(added, ones, others)


def add_(targets: list[Tensor], others: list[Tensor], factor: float) -> None:
    """Adds `factor` times `others` in place.

    Example:
        >>> target = torch.ones(1)
        >>> add_([target], [torch.ones(1)], 2.0)
        >>> target
        tensor([3.])
    """
    for places in alike(targets):
        some = [targets[i] for i in places]
        torch._foreach_add_(some, [others[i] for i in places], alpha=factor)


def scaled(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    """Returns tensors times a number.

    Example:
        >>> scaled([torch.ones(1)], 2.0)
        [tensor([2.])]
    """
    return by_kind(lambda some: torch._foreach_mul(some, factor), tensors)


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Returns 0-d tensors as numbers, with at most one transfer from an accelerator."""
    if all(scalar.is_cpu for scalar in scalars):
        return [scalar.item() for scalar in scalars]
    stacked = torch.stack([scalar.to(scalars[0].device, torch.float64) for scalar in scalars])
    numbers: list[float] = stacked.tolist()
    return numbers


def wide(tensor: Tensor) -> Tensor:
    """Casts a tensor of less than 32 bits to float32; returns others unchanged."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
