"""Adam's direction by torch's fused kernel: one pass over gradients and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
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
    for count, places in _alike(tensors, steps, [None] * len(steps)):
        p, u, m, v = ([x[i] for i in places] for x in (result, tensors, exp_avgs, exp_avg_sqs))
        _kernel(p, u, m, v, count, terms, lr=-1.0)()
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
        self._step = torch.zeros((), device="cpu")
        self._steps = [self._step] * (len(targets) + 1)

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
        beta1, beta2, eps, eps_mode, bias_correction = terms
        if bias_correction and eps_mode == "hat":
            eps = eps / (1 - beta2**count) ** 0.5
        # Of infinitely many steps the corrections are 1.
        self._step.fill_(count if bias_correction else math.inf)
        param, flag, second, largest = self._extra.zero_().unbind()
        scale, decay = blend
        run = partial(
            torch._fused_adamw_,
            [*targets, param],
            [*tensors, self._one],
            [*self.exp_avgs, flag],
            [*self.exp_avg_sqs, second],
            [*self.max_exp_avg_sqs, largest] if self.amsgrad else [],
            self._steps,
            lr=scale,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay / scale if decay else 0.0,
            eps=eps,
            amsgrad=self.amsgrad,
            maximize=False,
        )
        finish = partial(self._run, run, targets, count)
        return Write(targets[0], finish, partial(bool, flag))

    def _run(self, kernel: Callable[[], object], targets: list[Tensor], count: int) -> None:
        self.counts.fill_(count)
        kernel()
        torch.autograd.graph.increment_version(targets)


def bind(targets: list[Tensor], states: list[Any], places: list[int]) -> list[Bound]:
    """Returns tensors by count and dtype, as the kernel takes them."""
    counts = [int(state["step"]) for state in states]
    found: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, (count, target) in enumerate(zip(counts, targets, strict=True)):
        found.setdefault((count, target.dtype), []).append(i)
    return [
        Bound([targets[i] for i in some], [states[i] for i in some], [places[i] for i in some])
        for some in found.values()
    ]


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
