"""Operations on lists of tensors whose factor may be a number, or a tensor in a trace."""

from __future__ import annotations

import torch
from torch import Tensor


def add_scaled(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> list[Tensor]:
    """Returns ``x + factor * y``."""
    if isinstance(factor, Tensor):  # torch takes only numbers, but compiled it is one pass anyway
        return list(torch._foreach_add(tensors, torch._foreach_mul(others, factor)))
    return list(torch._foreach_add(tensors, others, alpha=factor))
