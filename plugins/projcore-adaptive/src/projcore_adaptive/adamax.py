"""Adamax."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import as_given, as_real, lerp_, once
from projcore_adaptive._betas import require_betas


def adamax_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_infs: list[Tensor],
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the state in place; returns ``m / (bc1 * n)``."""
    torch._foreach_add_(steps, 1)
    lerp_(exp_avgs, tensors, 1 - beta1)
    magnitudes = torch._foreach_abs(tensors)
    torch._foreach_add_(magnitudes, eps)
    torch._foreach_mul_(exp_infs, beta2)
    torch._foreach_maximum_(exp_infs, magnitudes)
    del magnitudes  # frees memory for the result
    corrections = once([1 - beta1 ** scalar(step) for step in steps])
    return list(torch._foreach_div(exp_avgs, torch._foreach_mul(exp_infs, corrections)))


class Adamax(Transform):
    r"""Adam with a decaying maximum of magnitudes in place of the root of the second moment.

    With :math:`t` counting steps from 1,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        n \leftarrow \max(\beta_2 n, \lvert u \rvert + \epsilon), \quad
        u \leftarrow \frac{m}{(1 - \beta_1^t) n}

    Followed by `LR` it is `torch.optim.Adamax`, up to rounding; torch's ``weight_decay`` is
    `WeightDecay` before this module. Complex numbers are treated as pairs of real ones, as in
    torch. When an outer projection changes its basis, the state is reinitialized, because a maximum
    cannot be transported.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0; with 0, an element whose updates are all 0 becomes NaN.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: two state tensors per parameter. Eager, 7 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adamax(), LR(2e-3))

    References:
        Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980 (algorithm 2; it has no
        :math:`\epsilon`, which is torch's).
    """

    scope = "element"
    kinds = {"exp_avg": "first", "exp_inf": "opaque", "step": "scalar"}

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "exp_avg": torch.zeros_like(tensor),
            "exp_inf": torch.zeros_like(tensor),
        }

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        beta1, beta2 = settings[0]["betas"]
        result = adamax_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            as_real([state["exp_inf"] for state in states]),
            [state["step"] for state in states],
            scalar(beta1),
            scalar(beta2),
            scalar(settings[0]["eps"]),
        )
        return as_given(result, tensors)
