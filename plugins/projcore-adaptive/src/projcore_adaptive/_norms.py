"""Norms of tensors, or of the items of batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.ops import is_sharded, lerp_, local, norms, norms_over, spread_lerp


def both_norms(
    ones: list[Tensor], others: list[Tensor], batch_dims: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the norms of tensors and of others, computed together."""
    found = norms([*ones, *others], batch_dims)
    return found[: len(ones)], found[len(ones) :]


def root_mean_squares(tensors: list[Tensor], batch_dims: int) -> list[Tensor]:
    """Returns the root of the mean square of each tensor or item; 0 if it is empty."""
    roots = [max(1, tensor.shape[batch_dims:].numel()) ** 0.5 for tensor in tensors]
    return list(torch._foreach_div(norms(tensors, batch_dims), roots))


def mean_squares(tensors: list[Tensor], dims: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns means of squares along dimensions, which stay with size 1; 0 if these are empty.

    Computed from norms, because squares would be temporaries as large as the tensors. Without
    dimensions, the squares.
    """
    over = [
        tuple(dim % tensor.ndim for dim in along)
        for tensor, along in zip(tensors, dims, strict=True)
    ]
    means = norms_over(tensors, 2.0, over)
    torch._foreach_mul_(means, means)
    counts = [
        max(1, tensor.numel() // max(1, mean.numel()))
        for tensor, mean in zip(tensors, means, strict=True)
    ]
    torch._foreach_div_(means, counts)
    return means


def lerp_mean_squares(
    averages: list[Tensor],
    tensors: list[Tensor],
    dims: Sequence[Sequence[int]],
    weights: Sequence[Any],
) -> list[Tensor]:
    """Moves averages towards means of squares along dimensions: ``a += w (mean - a)``.

    Returns the averages, of sharded tensors as `spread_lerp` does.
    """
    if not any(map(is_sharded, tensors)):
        lerp_(averages, mean_squares(tensors, dims), weights)
        return averages
    parts = mean_squares(list(map(local, tensors)), dims)
    for part, tensor, along in zip(parts, tensors, dims, strict=True):
        mine, all_ = (math.prod(each.shape[i] for i in along) for each in (local(tensor), tensor))
        part.mul_(mine / max(1, all_))
    return spread_lerp(averages, parts, tensors, dims, weights)
