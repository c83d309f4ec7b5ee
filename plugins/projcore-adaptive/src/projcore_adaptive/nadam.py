"""NAdam."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import add_squares_, as_given, as_real, lerp_, once
from projcore_adaptive._betas import require_betas


def nadam_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    mu_products: list[Tensor],
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    momentum_decay: float | Tensor,
    eps: float | Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Updates moments and counts in place; returns the updates and the new products."""
    torch._foreach_add_(steps, 1)
    counts = [scalar(step) for step in steps]
    now = [_momentum(beta1, count, momentum_decay) for count in counts]
    following = [_momentum(beta1, count + 1, momentum_decay) for count in counts]
    new_products = [product * mu for product, mu in zip(mu_products, now, strict=True)]
    products = [scalar(product) for product in new_products]
    lerp_(exp_avgs, tensors, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    add_squares_(exp_avg_sqs, tensors, 1 - beta2)
    shares = [(1 - mu) / (1 - product) for mu, product in zip(now, products, strict=True)]
    ahead = [mu / (1 - product * mu) for mu, product in zip(following, products, strict=True)]
    numerators = torch._foreach_mul(tensors, once(shares))
    torch._foreach_add_(numerators, torch._foreach_mul(exp_avgs, once(ahead)))
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_mul_(denominators, once([(1 - beta2**count) ** -0.5 for count in counts]))
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(numerators, denominators)
    return list(numerators), new_products


def _momentum(
    beta1: float | Tensor, count: float | Tensor, momentum_decay: float | Tensor
) -> float | Tensor:
    return beta1 * (1 - 0.5 * 0.96 ** (count * momentum_decay))


class NAdam(Transform):
    r"""Adam with Nesterov's momentum.

    With :math:`t` counting steps from 1 and :math:`\mu_t = \beta_1 (1 - \frac12 0.96^{t \psi})`,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) u^2, \quad
        u \leftarrow \frac{1}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} \left(
        \frac{(1 - \mu_t) u}{1 - \prod_{i \le t} \mu_i}
        + \frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i} \right)

    Followed by `LR` it is `torch.optim.NAdam`, up to rounding; torch's ``weight_decay`` is
    `WeightDecay` before this module, or between them with its ``decoupled_weight_decay``. The
    product is kept in float64; torch keeps it in the default dtype. Complex numbers are treated as
    pairs of real ones, as in torch.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.
        momentum_decay: :math:`\psi`, at least 0; the rate at which the momentum rises to
            :math:`\beta_1`.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: two state tensors per parameter. Eager, 10 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), NAdam(), LR(2e-3))

    References:
        Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ (algorithm 2; the schedule
        of momentum is that of its section 3.2 with 0.004 for 1/250, as in torch).
    """

    scope = "element"
    kinds = {
        "exp_avg": "first",
        "exp_avg_sq": "second",
        "mu_product": "scalar",
        "step": "scalar",
    }

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum_decay: float = 4e-3,
    ) -> None:
        super().__init__({"betas": betas, "eps": eps, "momentum_decay": momentum_decay})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)
        require(self, "momentum_decay", settings["momentum_decay"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "mu_product": torch.ones((), dtype=torch.float64, device="cpu"),
            "exp_avg": torch.zeros_like(tensor),
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
        beta1, beta2 = settings[0]["betas"]
        result, products = nadam_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            as_real([state["exp_avg_sq"] for state in states]),
            [state["mu_product"] for state in states],
            [state["step"] for state in states],
            scalar(beta1),
            scalar(beta2),
            scalar(settings[0]["momentum_decay"]),
            scalar(settings[0]["eps"]),
        )
        for state, product in zip(states, products, strict=True):
            state["mu_product"] = product  # the compiler drops writes into 0-d float64
        return as_given(result, tensors)
