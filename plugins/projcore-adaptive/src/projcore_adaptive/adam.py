"""Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projcore import Node, Settings, Transform, require, scalar


def adam_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor] | None,
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the moments and the step counts in place, and returns the bias-corrected direction."""
    torch._foreach_add_(steps, 1)
    counts = [scalar(step) for step in steps]
    correction1 = [1 - beta1**count for count in counts]
    correction2_sqrt = [(1 - beta2**count) ** 0.5 for count in counts]
    torch._foreach_lerp_(exp_avgs, tensors, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, tensors, tensors, 1 - beta2)
    if max_exp_avg_sqs is not None:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
        exp_avg_sqs = max_exp_avg_sqs
    denominator = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominator, correction2_sqrt)
    torch._foreach_add_(denominator, eps)
    torch._foreach_mul_(denominator, correction1)
    return list(torch._foreach_div(exp_avgs, denominator))
