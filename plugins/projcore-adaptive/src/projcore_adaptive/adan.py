"""Adan."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import add_squares_, as_given, as_real, copy_, fill_where, lerp_, once
from projcore_adaptive._betas import require_betas


def adan_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_diffs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    previous: list[Tensor],
    steps: list[Tensor],
    betas: tuple[float | Tensor, float | Tensor, float | Tensor],
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the state in place; returns the update."""
    beta1, beta2, beta3 = betas
    torch._foreach_add_(steps, 1)
    counts = [scalar(step) for step in steps]
    differences = fill_where(
        list(torch._foreach_sub(tensors, previous)), [count == 1 for count in counts], 0.0
    )
    copy_(previous, tensors)
    lerp_(exp_avgs, tensors, 1 - beta1)
    lerp_(exp_avg_diffs, differences, 1 - beta2)
    ahead = torch._foreach_mul(differences, beta2)
    torch._foreach_add_(ahead, tensors)
    torch._foreach_mul_(exp_avg_sqs, beta3)
    add_squares_(exp_avg_sqs, list(ahead), 1 - beta3)
    del differences, ahead  # frees memory for the following tensors
    update = torch._foreach_mul(exp_avgs, once([1 / (1 - beta1**count) for count in counts]))
    factors = once([beta2 / (1 - beta2**count) for count in counts])
    torch._foreach_add_(update, torch._foreach_mul(exp_avg_diffs, factors))
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_mul_(denominators, once([(1 - beta3**count) ** -0.5 for count in counts]))
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(update, denominators)
    return list(update)


class Adan(Transform):
    r"""Adam with Nesterov's momentum, estimated from differences of gradients.

    With :math:`t` counting steps from 1 and :math:`d = u - u_-` the difference to the update of the
    previous step, 0 in the first,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        \delta \leftarrow \beta_2 \delta + (1 - \beta_2) d, \quad
        n \leftarrow \beta_3 n + (1 - \beta_3) (u + \beta_2 d)^2

    .. math::
        u \leftarrow \frac{m / (1 - \beta_1^t) + \beta_2 \delta / (1 - \beta_2^t)}
        {\sqrt{n / (1 - \beta_3^t)} + \epsilon}

    As in the authors' code, the betas are decay rates, 1 minus the paper's, and the averages are
    bias-corrected. ``Adan(), WeightDecay(w), LR(lr)`` is that code with ``no_prox=True``. Its
    default, proximal decay, divides the new parameters by ``1 + lr * w``, and is not provided.
    Complex numbers are treated as pairs of real ones.

    Args:
        betas: :math:`\beta_1, \beta_2, \beta_3`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: four state tensors per parameter. Eager, 15 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, WeightDecay
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adan(), WeightDecay(0.02), LR(1e-3))

    References:
        Xie et al., 2022, https://arxiv.org/abs/2208.06677 (algorithm 1).
    """

    scope = "element"
    kinds = {
        "exp_avg": "first",
        "exp_avg_diff": "first",
        "exp_avg_sq": "second",
        "previous": "first",
        "step": "scalar",
    }

    def __init__(
        self, betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8
    ) -> None:
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings, count=3)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "exp_avg": torch.zeros_like(tensor),
            "exp_avg_diff": torch.zeros_like(tensor),
            "exp_avg_sq": torch.zeros_like(tensor),
            "previous": torch.zeros_like(tensor),
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
        beta1, beta2, beta3 = settings[0]["betas"]
        result = adan_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            as_real([state["exp_avg_diff"] for state in states]),
            as_real([state["exp_avg_sq"] for state in states]),
            as_real([state["previous"] for state in states]),
            [state["step"] for state in states],
            (scalar(beta1), scalar(beta2), scalar(beta3)),
            scalar(settings[0]["eps"]),
        )
        return as_given(result, tensors)
