"""Complex tensors as pairs of real numbers, which is how torch.optim treats them."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore.errors import ArgumentError


def as_real(tensors: list[Tensor]) -> list[Tensor]:
    """Views complex tensors as real ones, the two parts along a last dimension."""
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
