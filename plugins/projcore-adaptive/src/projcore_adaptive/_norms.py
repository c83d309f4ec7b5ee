"""Norms of tensors, or of the items of batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projcore.ops import norms, norms_over


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


def mean_squares(tensors: list[Tensor], dims: Sequence[tuple[int, ...]]) -> list[Tensor]:
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
