"""Adadelta."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import add_squares_, as_given, as_real


def adadelta_update(
    tensors: list[Tensor],
    square_avgs: list[Tensor],
    acc_deltas: list[Tensor],
    rho: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates both moving averages in place; returns ``sqrt(a + eps) / sqrt(v + eps) * u``."""
    torch._foreach_mul_(square_avgs, rho)
    add_squares_(square_avgs, tensors, 1 - rho)
    denominators = torch._foreach_add(square_avgs, eps)
    torch._foreach_sqrt_(denominators)
    update = torch._foreach_add(acc_deltas, eps)
    torch._foreach_sqrt_(update)
    torch._foreach_div_(update, denominators)
    torch._foreach_mul_(update, tensors)
    torch._foreach_mul_(acc_deltas, rho)
    add_squares_(acc_deltas, list(update), 1 - rho)
    return list(update)


class Adadelta(Transform):
    r"""Scales the update to the RMS of past steps: units match, and no learning rate is needed.

    .. math::
        v \leftarrow \rho v + (1 - \rho) u^2, \quad
        u' = \frac{\sqrt{a + \epsilon}}{\sqrt{v + \epsilon}} u, \quad
        a \leftarrow \rho a + (1 - \rho) u'^2

    Followed by `LR` it is `torch.optim.Adadelta`, up to rounding; torch's ``weight_decay`` is
    `WeightDecay` before this module, and its ``lr`` is 1 by default. Complex numbers are treated as
    pairs of real ones, as in torch.

    Args:
        rho: :math:`\rho`, at least 0 and at most 1.
        eps: :math:`\epsilon`, at least 0. It sets the size of the first steps, which are zero with
            0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: two state tensors per parameter. Eager, 10 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adadelta(), "lr(1.0)")  # as in torch

    References:
        Zeiler, 2012, https://arxiv.org/abs/1212.5701 (algorithm 1).
    """

    scope = "element"
    kinds = {"square_avg": "second", "acc_delta": "second"}

    def __init__(self, rho: float = 0.9, eps: float = 1e-6) -> None:
        super().__init__({"rho": rho, "eps": eps})

    def check(self, settings: Settings) -> None:
        require(self, "rho", settings["rho"], minimum=0, maximum=1)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"square_avg": torch.zeros_like(tensor), "acc_delta": torch.zeros_like(tensor)}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        result = adadelta_update(
            as_real(tensors),
            as_real([state["square_avg"] for state in states]),
            as_real([state["acc_delta"] for state in states]),
            scalar(settings[0]["rho"]),
            scalar(settings[0]["eps"]),
        )
        return as_given(result, tensors)
