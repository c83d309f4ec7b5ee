"""Scaling by a constant factor."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar


class Scale(Transform):
    r"""Multiplies the update by a constant factor: :math:`u \leftarrow a u`.

    Schedulers change ``lr`` and not this factor. Different factors in parameter groups make the
    learning rates of layers differ; -1 as the first module maximizes.

    Args:
        factor: :math:`a`, any finite number, or a 0-d tensor.

    Raises:
        ArgumentError: If ``factor`` is infinite or NaN.

    Cost: one pass over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> slow = {"params": [model.bias], "factor": 0.1}
        >>> optimizer = Optimizer([{"params": [model.weight]}, slow], Adam(), Scale(), LR(1e-3))
    """

    scope = "element"

    def __init__(self, factor: float | Tensor = 1.0) -> None:
        super().__init__({"factor": factor})

    def check(self, settings: Settings) -> None:
        largest = torch.finfo(torch.float64).max
        require(self, "factor", settings["factor"], minimum=-largest, maximum=largest)

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(scalar(settings[0]["factor"]), 0.0)] * len(states)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, settings[0]["factor"]))
