"""Operations on lists of tensors whose factor may be a number, or a tensor in a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def once(factors: list[Any]) -> list[Any]:
    """Returns numbers as they are; in a trace, has each computed once and not for each element.

    The compiler would inline what computes a factor, powers too, into the loop over the elements
    that it multiplies, which was six times slower. A stack is stored first.
    """
    return list(torch.stack(factors).unbind()) if isinstance(factors[0], Tensor) else factors


def lerp_(targets: list[Tensor], tensors: list[Tensor], weight: float | Tensor) -> None:
    """Moves targets towards tensors: ``t += weight * (x - t)``."""
    if isinstance(weight, Tensor):  # torch takes only numbers, but compiled it is one pass anyway
        step = torch._foreach_sub(tensors, targets)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(targets, step)
    else:
        torch._foreach_lerp_(targets, tensors, weight)


def add_squares_(targets: list[Tensor], tensors: list[Tensor], factor: float | Tensor) -> None:
    """Adds squares: ``t += factor * x * x``; a negative factor subtracts."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(
            targets, torch._foreach_mul(torch._foreach_mul(tensors, tensors), factor)
        )
    else:
        torch._foreach_addcmul_(targets, tensors, tensors, factor)
