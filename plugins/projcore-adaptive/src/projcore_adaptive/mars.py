"""Variance reduction from differences of updates."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Node, Settings, Transform, require, scalar
from projcore.ops import copy_


class MARS(Transform):
    r"""Adds to the update a part of its difference to the last one, which reduces its variance.

    With :math:`u_-` the update of the step before, 0 at the first,

    .. math::
        u \leftarrow u + \gamma \frac{\beta}{1 - \beta} (u - u_-)

    It stands before a mean, with the :math:`\beta` of that, and before a bound of the norm of each
    tensor. So the published optimizers are

    ==================  ============================================================================
    MARS-AdamW          ``MARS(), ClipNorm(1.0, per_tensor=True), Adam((0.95, 0.99)),
                        WeightDecay(w), LR(lr)``
    MARS-Lion           ``MARS(), ClipNorm(1.0, per_tensor=True), EMA(0.95, debias=False), Sign(),
                        WeightDecay(w), LR(lr)``
    ==================  ============================================================================

    There vectors are left out, and go to `Adam`. This is the form of the paper that takes one
    gradient a step; the exact one takes that of the last point on this batch as well.

    Args:
        gamma: :math:`\gamma`, at least 0: how much the difference counts.
        beta: :math:`\beta`, at least 0 and less than 1.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: memory of one tensor. Eager, 4 passes; compiled, one pass.

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
        states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        gamma, beta = scalar(settings[0]["gamma"]), scalar(settings[0]["beta"])
        previous = [state["previous"] for state in states]
        update = torch._foreach_sub(tensors, previous)
        torch._foreach_mul_(update, gamma * beta / (1 - beta))
        torch._foreach_add_(update, tensors)
        copy_(previous, tensors)
        return list(update)
