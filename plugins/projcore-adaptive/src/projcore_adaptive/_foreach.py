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


def lerp_(targets: list[Tensor], tensors: list[Tensor], weight: Any) -> None:
    """Moves targets towards tensors: ``t += weight * (x - t)``; there may be a weight for each."""
    if _traced(weight):  # torch takes only numbers, but compiled it is one pass anyway
        step = torch._foreach_sub(tensors, targets)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(targets, step)
    else:
        torch._foreach_lerp_(targets, tensors, weight)


def lerp(tensors: list[Tensor], ends: list[Tensor], weight: Any) -> list[Tensor]:
    """Returns tensors moved towards ends: ``t + weight * (e - t)``."""
    if _traced(weight):
        step = torch._foreach_sub(ends, tensors)
        torch._foreach_mul_(step, weight)
        return list(torch._foreach_add(tensors, step))
    return list(torch._foreach_lerp(tensors, ends, weight))


def fill_where(tensors: list[Tensor], flags: list[Any], value: float) -> list[Tensor]:
    """Fills the tensors whose flag is true, in place if flags are no tensors."""
    if isinstance(flags[0], Tensor):
        return [
            torch.where(flag, value, tensor) for flag, tensor in zip(flags, tensors, strict=True)
        ]
    for flag, tensor in zip(flags, tensors, strict=True):
        if flag:
            tensor.fill_(value)
    return tensors


def signs(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the sign of each element; NaN of one that is not finite, where torch gives 0, 1, -1.

    What is behind a sign would otherwise not see that memory before it is lost.
    """
    result = torch._foreach_sign(tensors)
    torch._foreach_add_(result, tensors, alpha=0)  # zero times Inf or NaN is NaN
    return list(result)


def add_squares_(targets: list[Tensor], tensors: list[Tensor], factor: float | Tensor) -> None:
    """Adds squares: ``t += factor * x * x``; a negative factor subtracts."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(
            targets, torch._foreach_mul(torch._foreach_mul(tensors, tensors), factor)
        )
    else:
        torch._foreach_addcmul_(targets, tensors, tensors, factor)


def _traced(weight: Any) -> bool:
    return isinstance(weight[0] if isinstance(weight, list) else weight, Tensor)
