"""Variance reduction by differences of updates."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import copy_


class MARS(Transform):
    r"""Reduces variance by adding a scaled difference to the previous update.

    With :math:`u_-` the update of the previous step, 0 in the first,

    .. math::
        u \leftarrow u + \gamma \frac{\beta}{1 - \beta} (u - u_-)

    Place it before a moving average, with the :math:`\beta` of that, and before clipping of each
    tensor's norm. The published optimizers are

    ==================  ============================================================================
    MARS-AdamW          ``MARS(), ClipNorm(1.0, per_tensor=True), Adam((0.95, 0.99)),
                        WeightDecay(w), LR(lr)``
    MARS-Lion           ``MARS(), ClipNorm(1.0, per_tensor=True), EMA(0.95, debias=False), Sign(),
                        WeightDecay(w), LR(lr)``
    ==================  ============================================================================

    In these, vectors are given to `Adam` instead. This is the paper's approximate form, with one
    gradient per step; the exact form also evaluates the previous parameters on the current batch.

    Args:
        gamma: :math:`\gamma`, at least 0: the weight of the difference.
        beta: :math:`\beta`, at least 0 and less than 1.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: one state tensor per parameter. Eager, 4 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam, ClipNorm
        >>> model = torch.nn.Linear(3, 2)
        >>> modules = MARS(), ClipNorm(1.0, per_tensor=True), Adam((0.95, 0.99)), LR(3e-3)
        >>> optimizer = Optimizer(model.parameters(), *modules)

    References:
        Yuan et al., 2024, https://arxiv.org/abs/2411.10438 (algorithm 2, MARS-approx).
    """

    scope = "element"
    kinds = {"previous": "first"}

    def __init__(self, gamma: float = 0.025, beta: float = 0.95) -> None:
        super().__init__({"gamma": gamma, "beta": beta})

    def check(self, settings: Settings) -> None:
        require(self, "gamma", settings["gamma"], minimum=0)
        require(self, "beta", settings["beta"], minimum=0, below=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"previous": torch.zeros_like(tensor)}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        gamma, beta = scalar(settings[0]["gamma"]), scalar(settings[0]["beta"])
        previous = [state["previous"] for state in states]
        update = torch._foreach_sub(tensors, previous)
        torch._foreach_mul_(update, gamma * beta / (1 - beta))
        torch._foreach_add_(update, tensors)
        copy_(previous, tensors)
        return list(update)
