"""Adam's direction by torch's fused kernel: one pass over gradients and moments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

EpsMode = Literal["corrected", "hat"]


class Terms(NamedTuple):
    """What the formula takes beside memory; as the settings of `Adam`."""

    beta1: Any
    beta2: Any
    eps: Any
    eps_mode: EpsMode
    bias_correction: bool


def can_fuse(tensor: Tensor, *memory: Tensor) -> bool:
    """Whether the kernel gives what it should: on the CPU, eagerly, for tensors without gaps.

    With strides it mistakes elements, and of other shapes it writes past the end (torch 2.13).
    """
    if torch.compiler.is_compiling() or tensor.dtype not in (torch.float32, torch.float64):
        return False
    if not (tensor.is_cpu and tensor.is_contiguous()):
        return False
    for each in memory:
        alike = each.is_cpu and each.dtype == tensor.dtype and each.shape == tensor.shape
        if not (alike and each.is_contiguous()):
            return False
    return True


def fused_direction(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    terms: Terms,
) -> list[Tensor]:
    """Updates the moments in place; returns their quotient.

    The kernel steps parameters that are zero, with a learning rate of -1.
    """
    beta1, beta2, eps, eps_mode, bias_correction = terms
    result = [torch.zeros_like(tensor) for tensor in tensors]
    for count, places in _alike(tensors, steps):
        correction = 1 - beta2**count
        fixed: dict[str, Any] = {"amsgrad": False, "weight_decay": 0.0, "maximize": False}
        torch._fused_adam_(
            [result[i] for i in places],
            [tensors[i] for i in places],
            [exp_avgs[i] for i in places],
            [exp_avg_sqs[i] for i in places],
            [],
            # Of infinitely many steps the corrections are 1.
            [torch.tensor(float(count) if bias_correction else math.inf)] * len(places),
            lr=-1.0,
            beta1=beta1,
            beta2=beta2,
            eps=eps / correction**0.5 if bias_correction and eps_mode == "hat" else eps,
            **fixed,
        )
    return result


def _alike(tensors: list[Tensor], steps: list[Tensor]) -> Iterator[tuple[int, list[int]]]:
    """Yields counts of steps, with the places of tensors that have it and are of one dtype."""
    places: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, (tensor, step) in enumerate(zip(tensors, steps, strict=True)):
        places.setdefault((int(step), tensor.dtype), []).append(i)
    for (count, _), found in places.items():
        yield count, found
