"""Clipping by value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore import Node, Settings, Transform, require, scalar
from projcore_basic._complex import as_given, as_real


def clip_value_update(tensors: list[Tensor], limit: float | Tensor) -> list[Tensor]:
    """Limits each element to the interval from ``-limit`` to ``limit``."""
    lowest: list[Any] = [-limit] * len(tensors)  # of tensors in a trace, else of numbers
    highest: list[Any] = [limit] * len(tensors)
    clipped = torch._foreach_clamp_min(tensors, lowest)
    torch._foreach_clamp_max_(clipped, highest)
    return list(clipped)


class ClipValue(Transform):
    r"""Limits each element of the update: :math:`u \leftarrow \min(\max(u, -c), c)`.

    Real and imaginary part of complex numbers are limited each by itself.

    Args:
        clip_value: :math:`c`, greater than 0.

    Raises:
        ArgumentError: If ``clip_value`` is out of range.

    Cost: two passes over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Optimizer([weight], ClipValue(1.0), LR(0.5))
        >>> weight.grad = torch.tensor([3.0, -0.5])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.5000,  0.2500])

    References:
        `torch.nn.utils.clip_grad_value_` does the same in place.
    """

    scope = "element"

    def __init__(self, clip_value: float) -> None:
        super().__init__({"clip_value": clip_value})

    def check(self, settings: Settings) -> None:
        require(self, "clip_value", settings["clip_value"], above=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        limit = scalar(settings[0]["clip_value"])
        return as_given(clip_value_update(as_real(tensors), limit), tensors)
