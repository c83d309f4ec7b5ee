"""Adam's direction by torch's fused kernel: one pass over gradients and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from projcore import Blend, Write
from projcore.ops import as_real

EpsMode = Literal["corrected", "hat"]

# Of bfloat16 it computes in float32 and rounds each number once. float16 never gets here: the
# optimizer hands in float32 copies.
FUSED = (torch.float32, torch.float64, torch.bfloat16)


PLAIN = {Tensor, torch.nn.Parameter}


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
    if type(tensor) not in PLAIN:
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
    for count, places in _alike(tensors, steps):
        p, u, m, v = ([x[i] for i in places] for x in (result, tensors, exp_avgs, exp_avg_sqs))
        step = torch.zeros((), device="cpu")
        _kernel((p, u, m, v, [], [step] * len(p)), count, terms, Blend(scale=-1.0))()
    return result


class Bound:
    """Tensors whose counts agree, as the kernel takes them, step after step.

    Args:
        targets: What it writes; in later steps, it may be other views of the same memory.
        states: Their states. The counts become views of one tensor, so that one operation counts.
        places: Which of the tensors of the writer these are.
    """

    def __init__(self, targets: list[Tensor], states: list[Any], places: list[int]) -> None:
        self.places = places
        self.exp_avgs = as_real([state["exp_avg"] for state in states])
        self.exp_avg_sqs = as_real([state["exp_avg_sq"] for state in states])
        self.amsgrad = "max_exp_avg_sq" in states[0]
        largest = [state["max_exp_avg_sq"] for state in states] if self.amsgrad else []
        self.max_exp_avg_sqs = as_real(largest)
        self.counts = torch.stack([state["step"] for state in states])
        for state, count in zip(states, self.counts.unbind(), strict=True):
            state["step"] = count
        # The kernel leaves versions as they are. One number more, whose moment it moves away from
        # zero, tells that it has run.
        self._extra = torch.zeros(4, dtype=targets[0].dtype, device="cpu")
        self._one = torch.ones((), dtype=targets[0].dtype, device="cpu")
        self._steps = [torch.zeros((), device="cpu")] * (len(targets) + 1)

    def count(self) -> int | None:
        """Returns the count that all share; None if somebody has changed one."""
        counts: list[int] = self.counts.tolist()
        return counts[0] if counts.count(counts[0]) == len(counts) else None

    def write(
        self, count: int, targets: list[Tensor], tensors: list[Tensor], blend: Blend, terms: Terms
    ) -> Write:
        """Returns what counts, updates the moments and writes the parameters, all at once.

        Until that has run, it may be called again.
        """
        param, flag, second, largest = self._extra.zero_().unbind()
        lists = (
            [*targets, param],
            [*tensors, self._one],
            [*self.exp_avgs, flag],
            [*self.exp_avg_sqs, second],
            [*self.max_exp_avg_sqs, largest] if self.amsgrad else [],
            self._steps,
        )
        run = _kernel(lists, count, terms, blend)
        finish = partial(self._run, run, targets, count)
        return Write(targets[0], finish, partial(bool, flag))

    def _run(self, kernel: Callable[[], object], targets: list[Tensor], count: int) -> None:
        self.counts.fill_(count)
        kernel()
        torch.autograd.graph.increment_version(targets)


def bind(targets: list[Tensor], states: list[Any], places: list[int]) -> list[Bound]:
    """Returns tensors by count and dtype, as the kernel takes them."""
    return [
        Bound([targets[i] for i in some], [states[i] for i in some], [places[i] for i in some])
        for _, some in _alike(targets, [state["step"] for state in states])
    ]


def _kernel(
    lists: tuple[list[Tensor], ...], count: int, terms: Terms, blend: Blend
) -> partial[object]:
    """Returns the call of the kernel.

    Args:
        lists: Parameters, gradients, both moments, the largest second moments or none, and the
            counts, which share one tensor; it is set here.
        count: The count of this step.
        terms: As said.
        blend: How parameters take the update; the kernel multiplies the decay by the scale.
    """
    beta1, beta2, eps, eps_mode, bias_correction = terms
    if bias_correction and eps_mode == "hat":
        eps = eps / (1 - beta2**count) ** 0.5
    *_, largest, steps = lists
    # Of infinitely many steps the corrections are 1.
    steps[0].fill_(count if bias_correction else math.inf)
    scale, decay = blend
    return partial(
        torch._fused_adamw_,
        *lists,
        lr=scale,
        beta1=beta1,
        beta2=beta2,
        weight_decay=decay / scale if decay else 0.0,
        eps=eps,
        amsgrad=bool(largest),
        maximize=False,
    )


def _alike(tensors: list[Tensor], steps: list[Tensor]) -> Iterator[tuple[int, list[int]]]:
    """Yields counts of steps, with the places of tensors that share it and their dtype."""
    if not tensors:
        return
    counts = torch.stack(steps).tolist()
    places: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, (count, tensor) in enumerate(zip(counts, tensors, strict=True)):
        places.setdefault((int(count), tensor.dtype), []).append(i)
    for (count, _), found in places.items():
        yield count, found
