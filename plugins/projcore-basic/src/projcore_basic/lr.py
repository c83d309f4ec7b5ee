"""Learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar


class LR(Transform):
    r"""Multiplies the update by the learning rate: :math:`u \leftarrow \eta u`.

    Args:
        lr: :math:`\eta`, at least 0; a number or a 0-d tensor. Schedulers change it in the group.
            They fill a tensor in place, and groups that do not set ``lr`` share that tensor, as in
            torch.

    Raises:
        ArgumentError: If ``lr`` is negative or NaN.

    Cost: one pass over the update.

    Example:
        >>> from projcore import Optimizer
        >>> optimizer = Optimizer([torch.nn.Parameter(torch.zeros(2))], LR(0.1))  # SGD
    """

    scope = "element"

    def __init__(self, lr: float | Tensor) -> None:
        super().__init__({"lr": lr})

    def check(self, settings: Settings) -> None:
        require(self, "lr", settings["lr"], minimum=0)

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(scalar(settings[0]["lr"]), 0.0)] * len(states)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, settings[0]["lr"]))
