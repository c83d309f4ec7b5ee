"""RAdam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import add_squares_, as_given, as_real, fill_where, lerp_, once
from projcore_adaptive._betas import require_betas
from projcore_adaptive.adam import init_moments


def radam_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates moments and counts in place; returns the rectified update."""
    torch._foreach_add_(steps, 1)
    counts = [scalar(step) for step in steps]
    lerp_(exp_avgs, tensors, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    add_squares_(exp_avg_sqs, tensors, 1 - beta2)
    factors, plain = zip(*(rectification(count, beta2) for count in counts), strict=True)
    denominators = list(torch._foreach_sqrt(exp_avg_sqs))
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(denominators, once(list(factors)))
    denominators = fill_where(denominators, list(plain), 1.0)
    corrections = once([1 - beta1**count for count in counts])
    torch._foreach_mul_(denominators, corrections)
    return list(torch._foreach_div(exp_avgs, denominators))


def rectification(count: float | Tensor, beta2: float | Tensor) -> tuple[Any, Any]:
    """Returns the factor ``sqrt(bc2) * r_t``, and whether the variance is too uncertain to be used.

    In that case the factor is 1, or arbitrary in a trace.
    """
    correction2 = 1 - beta2**count
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * count * beta2**count / correction2
    plain = length <= 5
    if not isinstance(plain, Tensor) and plain:
        return 1.0, True
    above = (length - 4) * (length - 2) * longest
    below = (longest - 4) * (longest - 2) * length
    return (correction2 * above / below) ** 0.5, plain


class RAdam(Transform):
    r"""Rectified Adam: corrects the first steps, in which the variance is uncertain.

    With :math:`t` counting steps from 1, :math:`m` and :math:`v` as in `Adam`,
    :math:`\rho_\infty = 2 / (1 - \beta_2) - 1` and
    :math:`\rho = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)`,

    .. math::
        u \leftarrow \frac{m}{1 - \beta_1^t} \cdot \begin{cases}
        \sqrt{\frac{(\rho - 4)(\rho - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho}}
        \cdot \frac{\sqrt{1 - \beta_2^t}}{\sqrt v + \epsilon} & \rho > 5 \\
        1 & \text{otherwise} \end{cases}

    Followed by `LR` it is `torch.optim.RAdam`, up to rounding; torch's ``weight_decay`` is
    `WeightDecay` before this module, or between them with its ``decoupled_weight_decay``. Complex
    numbers are treated as pairs of real ones, as in torch.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: two state tensors per parameter. Eager, 8 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), RAdam(), LR(1e-3))

    References:
        Liu et al., 2020, https://arxiv.org/abs/1908.03265 (algorithm 2; the threshold is 5 in place
        of 4, and there is an :math:`\epsilon`, as in torch and the authors' code).
    """

    scope = "element"
    kinds = {"exp_avg": "first", "exp_avg_sq": "second", "step": "scalar"}

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return init_moments(tensor)

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
        result = radam_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            as_real([state["exp_avg_sq"] for state in states]),
            [state["step"] for state in states],
            scalar(beta1),
            scalar(beta2),
            scalar(settings[0]["eps"]),
        )
        return as_given(result, tensors)
