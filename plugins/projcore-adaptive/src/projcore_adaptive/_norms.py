"""Norms of tensors, or of the items of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore.ops import norms


def root_mean_squares(tensors: list[Tensor], batch_dims: int) -> list[Tensor]:
    """Returns the root of the mean square of each tensor or item; 0 if it is empty."""
    roots = [max(1, tensor.shape[batch_dims:].numel()) ** 0.5 for tensor in tensors]
    return list(torch._foreach_div(norms(tensors, batch_dims), roots))


def mean_squares(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Returns the means of squares along dimensions, which stay with size 1; 0 if these are empty.

    By way of the norm, because squares would be a temporary as large as the tensor.
    """
    if not dims:
        return tensor * tensor
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    count = max(1, tensor.numel() // max(1, norm.numel()))
    return norm.square_().div_(count)
