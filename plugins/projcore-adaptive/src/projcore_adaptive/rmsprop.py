"""RMSprop."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import add_squares_, as_given, as_real, lerp_


def rmsprop_update(
    tensors: list[Tensor],
    square_avgs: list[Tensor],
    grad_avgs: list[Tensor] | None,
    alpha: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the moving averages in place; returns ``u / (sqrt(v - m * m) + eps)``."""
    torch._foreach_mul_(square_avgs, alpha)
    add_squares_(square_avgs, tensors, 1 - alpha)
    if grad_avgs is None:
        denominators = torch._foreach_sqrt(square_avgs)
    else:
        lerp_(grad_avgs, tensors, 1 - alpha)
        denominators = torch._foreach_addcmul(square_avgs, grad_avgs, grad_avgs, -1)
        torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    return list(torch._foreach_div(tensors, denominators))


def accumulate_(
    tensors: list[Tensor], buffers: list[Tensor], momentum: float | Tensor
) -> list[Tensor]:
    """Updates the momentum in place, ``b = momentum * b + u``, and returns it."""
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, tensors)
    return buffers


class RMSprop(Transform):
    r"""Divides the update by the root of the moving average of its squares.

    .. math::
        v \leftarrow \alpha v + (1 - \alpha) u^2, \quad
        u \leftarrow \frac{u}{\sqrt{v} + \epsilon}

    With ``centered``, the root is of :math:`v - m^2`, where :math:`m \leftarrow \alpha m + (1 -
    \alpha) u`. With ``momentum``, the result is :math:`b \leftarrow \mu b + u`, which is
    `HeavyBall` after it. Followed by `LR` it is `torch.optim.RMSprop`, up to rounding; torch's
    ``weight_decay`` is `WeightDecay` before this module. Complex numbers are treated as pairs of
    real ones, as in torch.

    Args:
        alpha: :math:`\alpha`, at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.
        centered: Whether to divide by an estimate of the variance; fixed: parameter groups cannot
            override it.
        momentum: :math:`\mu`, at least 0 and at most 1. With 0 there is neither a buffer nor such a
            setting; otherwise groups and schedulers may change it.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: one state tensor per parameter, and one more for each of ``centered`` and ``momentum``.
    Eager, 5 passes; 2 more for each; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), RMSprop(centered=True), LR(1e-3))

    References:
        Tieleman & Hinton, 2012, lecture 6.5 of Neural Networks for Machine Learning.
        Graves, 2013, https://arxiv.org/abs/1308.0850 (equations 38 to 41: centered, momentum).
    """

    scope = "element"
    kinds = {"square_avg": "second", "grad_avg": "first", "momentum_buffer": "first"}

    def __init__(
        self,
        alpha: float = 0.99,
        eps: float = 1e-8,
        centered: bool = False,
        momentum: float = 0.0,
    ) -> None:
        require(self, "momentum", momentum, minimum=0, maximum=1)
        self.centered = centered
        optional = {"momentum": momentum} if momentum > 0 else {}
        super().__init__({"alpha": alpha, "eps": eps, **optional})

    def check(self, settings: Settings) -> None:
        require(self, "alpha", settings["alpha"], minimum=0, below=1)
        require(self, "eps", settings["eps"], minimum=0)
        require(self, "momentum", settings.get("momentum", 0.0), minimum=0, maximum=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        memory: dict[str, Tensor | float] = {"square_avg": torch.zeros_like(tensor)}
        if self.centered:
            memory["grad_avg"] = torch.zeros_like(tensor)
        if "momentum" in settings:
            memory["momentum_buffer"] = torch.zeros_like(tensor)
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
        values = settings[0]
        result = rmsprop_update(
            as_real(tensors),
            as_real([state["square_avg"] for state in states]),
            as_real([state["grad_avg"] for state in states]) if self.centered else None,
            scalar(values["alpha"]),
            scalar(values["eps"]),
        )
        update = as_given(result, tensors)
        if "momentum" not in values:
            return update
        buffers = [state["momentum_buffer"] for state in states]
        return accumulate_(update, buffers, scalar(values["momentum"]))
