"""Numbers about lists of tensors: the inner product, the largest elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def flat(tensor: Tensor) -> Tensor:
    """Returns a vector of the elements; those of a complex tensor as real and imaginary parts."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(-1)


def dot(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    r"""Returns :math:`\mathrm{Re} \sum_i \langle x_i, y_i \rangle` of two lists of tensors.

    Tensors of less than 32 bits are multiplied and summed in float32, others in their own dtype;
    the sums of the tensors are added in float64.

    Example:
        >>> dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        11.0
    """
    parts = [
        torch.dot(wide(flat(one)), wide(flat(other)))
        for one, other in zip(ones, others, strict=True)
    ]
    return sum(_numbers(parts), 0.0)


def peaks(tensors: Sequence[Tensor]) -> list[float]:
    """Returns the largest absolute value in each tensor, 0 if it is empty.

    Example:
        >>> peaks([torch.tensor([1.0, -2.0]), torch.tensor(0.5), torch.tensor([])])
        [2.0, 0.5, 0.0]
    """
    if not tensors:
        return []
    filled = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]
    return _numbers(list(torch._foreach_norm(filled, math.inf)))


def plus(ones: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> list[Tensor]:
    """Returns ``x + factor * y`` in the dtypes of `ones`; of float16 the factor may exceed it.

    Example:
        >>> small = torch.tensor([1e-6], dtype=torch.float16)
        >>> plus([torch.zeros(1)], [small], 1e6)
        [tensor([1.0133])]
    """
    others = [wide(other) for other in others]
    sums = torch._foreach_add(list(ones), others, alpha=factor)
    return [each.to(one.dtype) for each, one in zip(sums, ones, strict=True)]


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Returns 0-d tensors as numbers; reads from another device than the CPU once, not for each."""
    if all(scalar.is_cpu for scalar in scalars):
        return [scalar.item() for scalar in scalars]
    stacked = torch.stack([scalar.to(scalars[0].device, torch.float64) for scalar in scalars])
    numbers: list[float] = stacked.tolist()
    return numbers


def wide(tensor: Tensor) -> Tensor:
    """Returns a tensor of less than 32 bits in float32, others as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
