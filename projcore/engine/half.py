"""Runs transforms of float16 tensors in float32, and rounds their results once.

float16 has no numbers between 0 and 6e-8, nor above 65504: an ``eps`` of 1e-8 becomes 0, and so
does the square of 1e-4. So transforms get float32 copies, and compute in float32, as torch's fused
kernels do. Their results and their state are rounded to float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.settings import Settings
from projcore.core.state import Entries


def has_half(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors has dtype float16."""
    return any(tensor.dtype is torch.float16 for tensor in tensors)


def in_float32(
    apply: Callable[..., Iterable[Tensor]],
    tensors: list[Tensor],
    params: list[Tensor] | None,
    grads: list[Tensor] | None,
    loss: Tensor | None,
    states: list[Entries],
    settings: list[Settings],
    **extra: Any,
) -> list[Tensor]:
    """Applies a transform to float32 copies; returns its float32 result, and rounds its state."""
    copies = [{name: _as_float32(value) for name, value in node.items()} for node in states]
    nodes = [dict(node) for node in copies]
    facts = (None if each is None else [_as_float32(t) for t in each] for each in (params, grads))
    result = list(apply([_as_float32(t) for t in tensors], *facts, loss, nodes, settings, **extra))
    for state, before, after in zip(states, copies, nodes, strict=True):
        for name in before.keys() - after.keys():
            del state[name]
        for name, value in after.items():
            old = state.get(name)
            if not isinstance(old, Tensor) or old.dtype is not torch.float16:
                state[name] = value
            elif value is before[name]:  # a copy that was written in place
                old.copy_(value)
            else:
                state[name] = value.to(old.dtype)
    return result


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.float16 else value
