"""AdEMAMix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentError
from projcore.ops import add_squares_, as_given, as_real, lerp_, once
from projcore_adaptive._betas import require_betas


def ademamix_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    slow_exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    counts: list[Any],
    betas: tuple[Any, Any, Any],
    alpha: Any,
    warmup: float | Tensor | None,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the state in place; returns the update. The counts are those of this step."""
    beta1, beta2, beta3 = betas
    alphas, slow = [alpha] * len(counts), [beta3] * len(counts)
    if warmup is not None:
        parts = [_smaller(count / warmup, 1.0) for count in counts]
        alphas = [alpha * part for part in parts]
        slow = [slow_beta(beta1, beta3, part) for part in parts]
    lerp_(exp_avgs, tensors, 1 - beta1)
    lerp_(slow_exp_avgs, tensors, once([1 - beta for beta in slow]))
    torch._foreach_mul_(exp_avg_sqs, beta2)
    add_squares_(exp_avg_sqs, tensors, 1 - beta2)
    update = torch._foreach_mul(exp_avgs, once([1 / (1 - beta1**count) for count in counts]))
    torch._foreach_add_(update, torch._foreach_mul(slow_exp_avgs, once(alphas)))
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_mul_(denominators, once([(1 - beta2**count) ** -0.5 for count in counts]))
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(update, denominators)
    return list(update)


def slow_beta(beta1: Any, beta3: Any, part: Any) -> Any:
    """Returns the beta whose half-life is interpolated between those of two others."""
    log1, log3 = _log(beta1), _log(beta3)
    return math.e ** (log1 * log3 / ((1 - part) * log3 + part * log1))


def _log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _smaller(value: Any, bound: float) -> Any:
    return value.clamp(max=bound) if isinstance(value, Tensor) else min(value, bound)


class AdEMAMix(Transform):
    r"""Adam with a second, much slower moving average of the update.

    With :math:`t` counting steps from 1,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        n \leftarrow \beta_3^{(t)} n + (1 - \beta_3^{(t)}) u, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) u^2

    .. math::
        u \leftarrow \frac{m / (1 - \beta_1^t) + \alpha^{(t)} n}
        {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    The slow average :math:`n` is not bias-corrected. Over the first `warmup` steps :math:`T`,
    :math:`\alpha^{(t)} = \alpha\, t / T`, and the half-life of :math:`\beta_3^{(t)}` rises linearly
    from that of :math:`\beta_1`:

    .. math::
        \beta_3^{(t)} = \exp \frac{\ln \beta_1 \ln \beta_3}
        {(1 - t / T) \ln \beta_3 + (t / T) \ln \beta_1}

    The published decay is decoupled: ``AdEMAMix(), WeightDecay(0.1), LR(1e-3)``. Complex numbers
    are treated as pairs of real ones.

    Args:
        betas: :math:`\beta_1, \beta_2, \beta_3`, each at least 0 and less than 1.
        alpha: :math:`\alpha`, at least 0: the weight of the slow average.
        warmup: :math:`T`, above 0; in the paper the number of all steps. None for no warmup, which
            may diverge at first.
        eps: :math:`\epsilon`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range, or there is a ``warmup`` while :math:`\beta_1`
            or :math:`\beta_3` is 0.

    Cost: three state tensors per parameter. Eager, 11 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, WeightDecay
        >>> model = torch.nn.Linear(3, 2)
        >>> modules = AdEMAMix(warmup=10_000), WeightDecay(0.1), LR(1e-3)
        >>> optimizer = Optimizer(model.parameters(), *modules)

    References:
        Pagliardini, Ablin & Grangier, 2024, https://arxiv.org/abs/2409.03137 (algorithm 1,
        equations 2 and 3).
    """

    scope = "element"
    kinds = {
        "exp_avg": "first",
        "exp_avg_slow": "first",
        "exp_avg_sq": "second",
        "step": "scalar",
    }

    def __init__(
        self,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        warmup: float | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__({"betas": betas, "alpha": alpha, "warmup": warmup, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings, count=3)
        require(self, "alpha", settings["alpha"], minimum=0)
        require(self, "eps", settings["eps"], minimum=0)
        if settings["warmup"] is None:
            return
        require(self, "warmup", settings["warmup"], above=0)
        beta1, _, beta3 = settings["betas"]
        if not (float(beta1) and float(beta3)):
            raise ArgumentError(
                f"AdEMAMix was given betas={settings['betas']!r} and a warmup, during which the "
                "half-life of the slow average rises from that of the first beta. A beta of 0 has "
                "no half-life. Pass betas above 0, or warmup=None."
            )

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "exp_avg": torch.zeros_like(tensor),
            "exp_avg_slow": torch.zeros_like(tensor),
            "exp_avg_sq": torch.zeros_like(tensor),
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
        values = settings[0]
        beta1, beta2, beta3 = (scalar(beta) for beta in values["betas"])
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        result = ademamix_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            as_real([state["exp_avg_slow"] for state in states]),
            as_real([state["exp_avg_sq"] for state in states]),
            [scalar(step) for step in steps],
            (beta1, beta2, beta3),
            scalar(values["alpha"]),
            None if values["warmup"] is None else scalar(values["warmup"]),
            scalar(values["eps"]),
        )
        return as_given(result, tensors)
