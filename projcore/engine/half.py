"""float16: what is computed in float32, and rounded once.

Of float16, the smallest number is 6e-8 and the largest 65504: an ``eps`` of 1e-8 is 0 there, and so
is the square of 1e-4. So transforms get copies in float32, and never compute with less, as the
fused kernels of torch. What they return, and what they remember, is rounded to float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.settings import Settings
from projcore.core.state import Node


def has_half(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors is of float16."""
    return any(tensor.dtype is torch.float16 for tensor in tensors)


def in_float32(
    apply: Callable[..., Iterable[Tensor]],
    tensors: list[Tensor],
    params: list[Tensor] | None,
    grads: list[Tensor] | None,
    loss: Tensor | None,
    states: list[Node],
    settings: list[Settings],
    **extra: Any,
) -> list[Tensor]:
    """Applies a transform to copies; returns its result, in float32, and rounds its state."""
    copies = [{name: _wide(value) for name, value in node.items()} for node in states]
    nodes = [dict(node) for node in copies]
    facts = (None if each is None else [_wide(t) for t in each] for each in (params, grads))
    result = list(apply([_wide(t) for t in tensors], *facts, loss, nodes, settings, **extra))
    for kept, before, after in zip(states, copies, nodes, strict=True):
        for name in before.keys() - after.keys():
            del kept[name]
        for name, value in after.items():
            old = kept.get(name)
            if not isinstance(old, Tensor) or old.dtype is not torch.float16:
                kept[name] = value
            elif value is before[name]:  # what was written in place is written in place
                old.copy_(value)
            else:
                kept[name] = value.to(old.dtype)
    return result


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.float16 else value
