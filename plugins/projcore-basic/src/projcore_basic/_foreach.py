"""Operations on lists of tensors whose factor may be a number, or a tensor in a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_scaled(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> list[Tensor]:
    """Returns ``x + factor * y``."""
    if isinstance(factor, Tensor):  # torch takes only numbers, but compiled it is one pass anyway
        return list(torch._foreach_add(tensors, torch._foreach_mul(others, factor)))
    return list(torch._foreach_add(tensors, others, alpha=factor))


def lerp_(targets: list[Tensor], tensors: list[Tensor], weight: float | Tensor) -> None:
    """Moves targets towards tensors: ``t += weight * (x - t)``."""
    if isinstance(weight, Tensor):
        step = torch._foreach_sub(tensors, targets)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(targets, step)
    else:
        torch._foreach_lerp_(targets, tensors, weight)


def signs(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the sign of each element; NaN of one that is not finite, where torch gives 0, 1, -1.

    What is behind a sign would otherwise not see that memory before it is lost.
    """
    result = torch._foreach_sign(tensors)
    torch._foreach_add_(result, tensors, alpha=0)  # zero times Inf or NaN is NaN
    return list(result)


def once(factors: list[Any]) -> list[Any]:
    """Returns numbers as they are; in a trace, has each computed once and not for each element.

    The compiler would inline what computes a factor, powers too, into the loop over the elements
    that it multiplies. A stack is stored first.
    """
    return list(torch.stack(factors).unbind()) if isinstance(factors[0], Tensor) else factors
