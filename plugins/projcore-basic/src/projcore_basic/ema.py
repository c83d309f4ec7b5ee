"""Exponential moving average of the update."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import lerp_, once


def ema_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    steps: list[Tensor] | None,
    beta: float | Tensor,
) -> list[Tensor]:
    """Updates the averages, and the step counts if given, in place; returns the averages.

    With counts they are bias-corrected.
    """
    lerp_(exp_avgs, tensors, 1 - beta)
    if steps is None:
        return exp_avgs
    torch._foreach_add_(steps, 1)
    return list(torch._foreach_div(exp_avgs, once([1 - beta ** scalar(step) for step in steps])))


class EMA(Transform):
    r"""Replaces the update by its exponential moving average, the first half of Adam.

    With :math:`t` counting steps from 1,

    .. math::
        m \leftarrow \beta m + (1 - \beta) u, \qquad u \leftarrow m / (1 - \beta^t)

    and without ``debias``, :math:`u \leftarrow m`. `HeavyBall` sums instead of averaging: its
    result is larger by a factor of :math:`1 / (1 - \beta)`.

    Args:
        beta: :math:`\beta`, at least 0 and less than 1.
        debias: Whether to correct the bias towards the initial zero; fixed: parameter groups cannot
            override it.

    Raises:
        ArgumentError: If ``beta`` is out of range.

    Cost: one state tensor per parameter. Eager, one pass; 2 with ``debias``.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Sign
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), EMA(0.9), Sign(), LR(1e-3))  # signum

    References:
        Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980 (algorithm 1, the first moment).
    """

    scope = "element"
    kinds = {"exp_avg": "first", "step": "scalar"}

    def __init__(self, beta: float = 0.9, debias: bool = True) -> None:
        self.debias = debias
        super().__init__({"beta": beta})

    def check(self, settings: Settings) -> None:
        require(self, "beta", settings["beta"], minimum=0, below=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        memory: dict[str, Tensor | float] = {"exp_avg": torch.zeros_like(tensor)}
        if self.debias:
            memory["step"] = torch.zeros((), dtype=torch.int64, device="cpu")
        return memory

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return ema_update(
            tensors,
            [state["exp_avg"] for state in states],
            [state["step"] for state in states] if self.debias else None,
            scalar(settings[0]["beta"]),
        )
