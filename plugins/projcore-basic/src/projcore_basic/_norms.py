"""Norms of lists of tensors, as a whole or one by one."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from projcore import first_nonfinite, require
from projcore.errors import ArgumentError, NonFiniteError

Order = float | Literal["inf"]
Nonfinite = Literal["allow", "raise", "skip"]


def require_choice(owner: object, value: object) -> None:
    """Raises unless a value says what is to be done about Inf and NaN."""
    if value not in get_args(Nonfinite):
        raise ArgumentError(
            f"{type(owner).__name__} was given nonfinite={value!r}. It is 'allow', 'raise' or "
            "'skip'. Pass one of these."
        )


def refuse_nonfinite(owner: object, tensors: list[Tensor], nonfinite: Nonfinite) -> None:
    """Raises if there is Inf or NaN in norms, or in what is clipped, unless it is allowed."""
    if nonfinite != "allow" and first_nonfinite(tensors) is not None:
        raise NonFiniteError(
            f"{owner} was given an update in which there is Inf or NaN, or whose norm overflows. "
            "It takes finite ones. Leave this step out, or pass nonfinite='skip', which does so.",
            skip=nonfinite == "skip",
        )


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
