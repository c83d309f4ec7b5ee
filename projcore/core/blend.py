"""How parameters take an update: as it is, scaled, and with a multiple of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from projcore.errors import ContractError


class Blend(NamedTuple):
    """How a parameter `p` takes an update `u`: it becomes ``p - scale * u - decay * p``."""

    scale: float = 1.0
    decay: float = 0.0


class Write(NamedTuple):
    """One operation in place on parameters.

    Attributes:
        target: A parameter that it writes, or a view of it.
        run: Does it. What it computes before may fail; what it writes, it writes at once, last.
        written: Whether it has written. None where the version of the target tells, as it does
            after every operation in place of torch but the fused optimizers.
    """

    target: Tensor
    run: Callable[[], object]
    written: Callable[[], bool] | None = None


def blended(
    targets: Sequence[Tensor], update: Sequence[Tensor], blends: Sequence[Blend]
) -> list[Write]:
    """Returns the one operation by which parameters take an update; none if there are none."""
    if not targets:
        return []
    check_writable(targets, update)
    some, tensors, alpha = list(targets), list(update), 1.0
    if len(set(blends)) == 1 and not blends[0].decay:
        alpha = blends[0].scale
    else:
        tensors = list(torch._foreach_mul(tensors, [blend.scale for blend in blends]))
        if any(blend.decay for blend in blends):
            decays = torch._foreach_mul(some, [blend.decay for blend in blends])
            tensors = list(torch._foreach_add(tensors, decays))
    return [Write(some[0], partial(torch._foreach_sub_, some, tensors, alpha=alpha))]


def check_writable(targets: Sequence[Tensor], update: Sequence[Tensor]) -> None:
    """Raises unless each tensor of an update can be subtracted from its parameter."""
    for i, (parameter, tensor) in enumerate(zip(targets, update, strict=True)):
        if tensor.dtype == parameter.dtype and tensor.device == parameter.device:
            continue
        castable = parameter.is_complex() or not tensor.is_complex()
        if not castable or tensor.device != parameter.device:
            raise ContractError(
                f"The update of parameter {i} is {tensor.dtype} on {tensor.device}, the parameter "
                f"{parameter.dtype} on {parameter.device}. It cannot be subtracted. Correct the "
                "module that made it."
            )
