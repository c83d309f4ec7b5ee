"""Adam's direction by torch's fused kernel: one pass over gradients and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import starmap
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from projcore import Blend, Write
from projcore.ops import as_real, empty_like

EpsMode = Literal["corrected", "hat"]

# The kernel computes bfloat16 in float32 and rounds each number once. float16 does not occur: the
# optimizer passes float32 copies.
FUSED = (torch.float32, torch.float64, torch.bfloat16)


# Fake tensors are included, so that plans and measurements made with them hold for plain tensors.
PLAIN = {Tensor, torch.nn.Parameter, FakeTensor}


class Terms(NamedTuple):
    """The hyperparameters of the formula; as the settings of `Adam`."""

    beta1: Any
    beta2: Any
    eps: Any
    eps_mode: EpsMode
    bias_correction: bool

    def corrected(self, count: int) -> float:
        """Returns the step count from which the kernel computes the bias corrections.

        For an infinite count the corrections are 1.
        """
        return count if self.bias_correction else math.inf


def can_fuse(tensor: Tensor, *memory: Tensor) -> bool:
    """Whether the fused kernel is safe: in eager mode, for contiguous tensors of equal shapes.

    Tensors are plain ones: subclasses such as `DTensor` cannot be mixed with them in one call. On
    the CPU the kernel ignores strides (wrong elements) and shapes (out-of-bounds writes; torch
    2.13); on other devices it requires that shapes and strides agree.
    """
    if torch.compiler.is_compiling() or tensor.dtype not in FUSED:
        return False
    if type(tensor) not in PLAIN or not has_kernel(tensor.device.type):
        return False
    if not tensor.is_contiguous():
        return False
    for each in memory:
        alike = each.device == tensor.device and each.dtype == tensor.dtype
        if not (alike and each.shape == tensor.shape and each.is_contiguous()):
            return False
    return True


@cache
def has_kernel(device_type: str) -> bool:
    """Whether torch has the kernel for this type of device."""
    return device_type in _get_fused_kernels_supported_devices()


def fused_direction(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    terms: Terms,
) -> list[Tensor]:
    """Updates the moments in place; returns their quotient.

    The kernel updates parameters of zeros, with a learning rate of -1.
    """
    result = empty_like(tensors)
    torch._foreach_zero_(result)
    for count, places in _alike(tensors, steps):
        p, u, m, v = ([x[i] for i in places] for x in (result, tensors, exp_avgs, exp_avg_sqs))
        step = _step_tensor(p[0]).fill_(terms.corrected(count))
        _kernel((p, u, m, v, []), step, count, terms, Blend(scale=-1.0))()
    return result


class Bound:
    """Tensors with equal step counts, in lists for the kernel that later steps reuse.

    Args:
        targets: The tensors to write; later steps may pass other views of the same storage.
        states: Their states. The counts become views of one tensor, so that one operation
            increments all.
        places: Indices of these tensors among those of the writer.
    """

    def __init__(self, targets: list[Tensor], states: list[Any], places: list[int]) -> None:
        self.places = places
        self.exp_avgs = as_real([state["exp_avg"] for state in states])
        self.exp_avg_sqs = as_real([state["exp_avg_sq"] for state in states])
        amsgrad = "max_exp_avg_sq" in states[0]
        largest = [state["max_exp_avg_sq"] for state in states] if amsgrad else []
        self.max_exp_avg_sqs = as_real(largest)
        self.counts = torch.stack([state["step"] for state in states])
        for state, count in zip(states, self.counts.unbind(), strict=True):
            state["step"] = count
        self._step = _step_tensor(targets[0])
        self._filled = False

    def count(self) -> int | None:
        """Returns the common step count, or None if the counts differ."""
        counts: list[int] = self.counts.tolist()
        return counts[0] if counts.count(counts[0]) == len(counts) else None

    def write(
        self, count: int, targets: list[Tensor], tensors: list[Tensor], blend: Blend, terms: Terms
    ) -> Write:
        """Returns the operation that updates counts, moments and parameters in one kernel call.

        It may be called again until the operation has run.
        """
        memory = (self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs)
        kernel = _kernel((targets, tensors, *memory), self._step, count, terms, blend)
        ran: list[object] = []

        def run() -> None:
            self.counts.fill_(count)
            if terms.bias_correction or not self._filled:  # otherwise it is always infinite
                self._step.fill_(terms.corrected(count))
                self._filled = True
            self._run(kernel, targets, ran)

        return Write(targets[0], run, partial(bool, ran))

    def _run(self, kernel: Callable[[], object], targets: list[Tensor], ran: list[object]) -> None:
        # The kernel does not increment versions. The next line runs entirely in C: no interrupt can
        # occur between the kernel and the record that it has run.
        ran.extend(starmap(kernel, [()]))
        torch.autograd.graph.increment_version(targets)


def bind(targets: list[Tensor], states: list[Any], places: list[int]) -> list[Bound]:
    """Groups tensors by step count, dtype and device, for one call of the kernel each."""
    return [
        Bound([targets[i] for i in some], [states[i] for i in some], [places[i] for i in some])
        for _, some in _alike(targets, [state["step"] for state in states])
    ]


def _step_tensor(tensor: Tensor) -> Tensor:
    """Returns a 0-d tensor on the device of a tensor, from which the kernel reads the step count.

    The counts of the state are on the CPU, where Python reads them without a synchronization.
    """
    return torch.empty((), dtype=torch.float32, device=tensor.device)


def _kernel(
    lists: tuple[list[Tensor], ...], step: Tensor, count: int, terms: Terms, blend: Blend
) -> partial[object]:
    """Returns the call of the kernel.

    Args:
        lists: Parameters, gradients, both moments, and the largest second moments or none.
        step: Holds the step count of all of them when the kernel runs, which only reads it.
        count: The count of this step.
        terms: The hyperparameters.
        blend: The scale and decay of the update; the kernel multiplies the decay by the scale.
    """
    eps = terms.eps
    if terms.bias_correction and terms.eps_mode == "hat":
        eps = eps / (1 - terms.beta2**count) ** 0.5
    scale, decay = blend
    return partial(
        torch._fused_adamw_,
        *lists,
        [step] * len(lists[0]),
        lr=scale,
        beta1=terms.beta1,
        beta2=terms.beta2,
        weight_decay=decay / scale if decay else 0.0,
        eps=eps,
        amsgrad=bool(lists[4]),
        maximize=False,
    )


def _alike(tensors: list[Tensor], steps: list[Tensor]) -> Iterator[tuple[int, list[int]]]:
    """Yields step counts, with the indices of tensors of the same count, dtype and device."""
    if not tensors:
        return
    counts = torch.stack(steps).tolist()
    places: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for i, (count, tensor) in enumerate(zip(counts, tensors, strict=True)):
        places.setdefault((int(count), tensor.dtype, tensor.device), []).append(i)
    for (count, *_), found in places.items():
        yield count, found
