"""Frozen parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform


class Freeze(Transform):
    r"""Zeroes the update, so that parameters do not change.

    .. math:: u \leftarrow 0

    For use in `Route`. Modules before it in a chain still run and update their state.

    Cost: one pass that writes a tensor.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore_structural import Route
        >>> model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 2))
        >>> route = Route({"0.*": Freeze(), "*": None})
        >>> optimizer = Optimizer(model.named_parameters(), route, "lr(0.1)")
    """

    scope = "element"

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return [torch.zeros_like(tensor) for tensor in tensors]
