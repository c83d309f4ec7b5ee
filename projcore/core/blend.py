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
        target: A parameter that it writes, or a view of it, whose version tells that it has.
        run: Does it. What it computes before may fail; what it writes, it writes at once, last.
    """

    target: Tensor
    run: Callable[[], object]


def blended(
    targets: Sequence[Tensor], update: Sequence[Tensor], blends: Sequence[Blend]
) -> list[Write]:
    """Returns operations by which parameters take an update, all of a blend at once."""
    check_writable(targets, update)
    alike: dict[Blend, list[int]] = {}
    for i, blend in enumerate(blends):
        alike.setdefault(blend, []).append(i)
    made = []
    for (scale, decay), places in alike.items():
        some, tensors = [targets[i] for i in places], [update[i] for i in places]
        if decay:
            made.append(Write(some[0], partial(torch._foreach_mul_, some, 1 - decay)))
        made.append(Write(some[0], partial(torch._foreach_sub_, some, tensors, alpha=scale)))
    return made


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
