"""Norms of lists of tensors, as a whole or one by one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from projcore import require

Order = float | Literal["inf"]


def as_order(owner: object, name: str, value: Order) -> float:
    """Returns the order of a norm as a number; raises unless it is above 0."""
    if value == "inf":
        return math.inf
    require(owner, name, value, above=0)
    return float(value)


def whole_norm(tensors: list[Tensor], order: float) -> Tensor:
    """Returns the norm of all tensors together, a 0-d tensor, as torch's clip_grad_norm_ does."""
    norms = [norm.to(tensors[0].device) for norm in each_norm(tensors, order)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), order)
    return norm


def each_norm(tensors: list[Tensor], order: float, batch_dims: int = 0) -> list[Tensor]:
    """Returns the norm of each tensor, or of each item where `batch_dims` dimensions index items.

    Norms of items have the dimensions of the tensor.
    """
    if batch_dims:
        return [_item_norms(tensor, order, batch_dims) for tensor in tensors]
    if order == math.inf and any(tensor.numel() == 0 for tensor in tensors):
        return [_item_norms(tensor.reshape(1, -1), order, 1).reshape(()) for tensor in tensors]
    return list(torch._foreach_norm(tensors, order))


def _item_norms(tensor: Tensor, order: float, batch_dims: int) -> Tensor:
    if tensor.ndim == batch_dims:
        return tensor.abs()
    return norm_over(tensor, order, tuple(range(batch_dims, tensor.ndim)))


def norm_over(tensor: Tensor, order: float, dims: tuple[int, ...]) -> Tensor:
    """Returns the norms over some dimensions, which stay with size 1."""
    if order == math.inf and tensor.numel() == 0:  # there is no largest element; the norm is 0
        return tensor.abs().sum(dims, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(tensor, order, dims, keepdim=True)
    return norms
