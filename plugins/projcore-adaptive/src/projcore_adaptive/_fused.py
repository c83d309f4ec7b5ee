"""Adam's direction by torch's fused kernel: one pass over gradients and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from projcore import Blend, Write

EpsMode = Literal["corrected", "hat"]

# Of bfloat16 it computes in float32 and rounds each number once. float16 never gets here: the
# optimizer hands in float32 copies.
FUSED = (torch.float32, torch.float64, torch.bfloat16)


class Terms(NamedTuple):
    """What the formula takes beside memory; as the settings of `Adam`."""

    beta1: Any
    beta2: Any
    eps: Any
    eps_mode: EpsMode
    bias_correction: bool


def can_fuse(tensor: Tensor, *memory: Tensor) -> bool:
    """Whether the kernel gives what it should: on the CPU, eagerly, for tensors without gaps.

    They are of torch's own class: others, as `DTensor`, do not go with plain ones in one call. With
    strides it mistakes elements, and of other shapes it writes past the end (torch 2.13).
    """
    if torch.compiler.is_compiling() or tensor.dtype not in FUSED:
        return False
    if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
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
    result = [torch.zeros_like(tensor) for tensor in tensors]
    for count, places in _alike(tensors, steps, [None] * len(steps)):
        p, u, m, v = ([x[i] for i in places] for x in (result, tensors, exp_avgs, exp_avg_sqs))
        _kernel(p, u, m, v, count, terms, lr=-1.0)()
    return result


def fused_writes(
    targets: list[Tensor],
    blends: list[Blend],
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    terms: Terms,
) -> list[Write]:
    """Returns what updates the moments and writes the parameters, both at once."""
    made = []
    for count, places in _alike(tensors, steps, blends):
        p, u, m, v = ([x[i] for i in places] for x in (targets, tensors, exp_avgs, exp_avg_sqs))
        scale, decay = blends[places[0]]
        own = decay / scale if decay else 0.0
        # The kernel leaves versions as they are. One number more, whose moment it moves away from
        # zero, tells that it has run.
        flag = torch.zeros((), dtype=u[0].dtype, device="cpu")
        one, zero = torch.ones_like(flag), torch.zeros_like(flag)
        lists = [*p, zero], [*u, one], [*m, flag], [*v, zero.clone()]
        kernel = _kernel(*lists, count, terms, lr=scale, weight_decay=own)
        made.append(Write(p[0], partial(_run, kernel, p), partial(bool, flag)))
    return made


def _run(kernel: Callable[[], object], targets: list[Tensor]) -> None:
    kernel()
    torch.autograd.graph.increment_version(targets)


def _kernel(
    targets: list[Tensor],
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    count: int,
    terms: Terms,
    lr: float,
    weight_decay: float = 0.0,
) -> partial[object]:
    beta1, beta2, eps, eps_mode, bias_correction = terms
    if bias_correction and eps_mode == "hat":
        eps = eps / (1 - beta2**count) ** 0.5
    # Of infinitely many steps the corrections are 1.
    step = torch.tensor(float(count) if bias_correction else math.inf, device="cpu")
    fixed: dict[str, Any] = {"amsgrad": False, "maximize": False}
    return partial(
        torch._fused_adamw_,
        targets,
        tensors,
        exp_avgs,
        exp_avg_sqs,
        [],
        [step] * len(targets),
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        **fixed,
    )


def _alike(
    tensors: list[Tensor], steps: list[Tensor], keys: Sequence[Hashable]
) -> Iterator[tuple[int, list[int]]]:
    """Yields counts of steps, with the places of tensors that share it, their dtype and a key."""
    counts = torch.stack(steps).tolist()
    places: dict[tuple[int, torch.dtype, Hashable], list[int]] = {}
    for i, (count, tensor, key) in enumerate(zip(counts, tensors, keys, strict=True)):
        places.setdefault((int(count), tensor.dtype, key), []).append(i)
    for (count, _, _), found in places.items():
        yield count, found
