"""Writing parameters by subtracting a scaled update, which may be of any dtype that fits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from projcore._checks import check_writable
from projcore.core.space import Space
from projcore.core.writer import Blend, Write
from projcore.ops import local


def alike(space: Space, indices: Iterable[int]) -> list[list[int]]:
    """Splits tensors of a space, given by index, into those that torch takes in one list."""
    found: dict[Hashable, list[int]] = {}
    for i in indices:
        found.setdefault((space.formats[i], space.template[i].dtype), []).append(i)
    return list(found.values())


def blended(
    targets: Sequence[Tensor],
    update: Sequence[Tensor],
    blends: Sequence[Blend],
    together: Sequence[Sequence[int]] | None = None,
) -> list[Write]:
    """Returns the operations by which parameters take an update, one for those that are alike.

    Args:
        targets: The parameters.
        update: The update.
        blends: How each takes it.
        together: Which of them take it, in the lists that torch takes; by default all, in one.
    """
    if together is None:
        together = [range(len(targets))] if targets else []
    return [
        _blended([targets[i] for i in some], [update[i] for i in some], [blends[i] for i in some])
        for some in together
    ]


def _blended(targets: list[Tensor], update: list[Tensor], blends: list[Blend]) -> Write:
    check_writable(targets, update)
    # Elementwise, so parts are enough; torch takes long over each operation on sharded tensors.
    targets, update = list(map(local, targets)), list(map(local, update))
    alpha = 1.0
    same_scale = len({blend.scale for blend in blends}) == 1
    decays = any(blend.decay for blend in blends)
    if same_scale and not decays:
        alpha = blends[0].scale
    elif same_scale and all(u.dtype is t.dtype for u, t in zip(update, targets, strict=True)):
        # In one list of new memory; below it is three.
        given, update = update, list(torch._foreach_mul(targets, [b.decay for b in blends]))
        torch._foreach_add_(update, given, alpha=blends[0].scale)
    else:
        update = list(torch._foreach_mul(update, [blend.scale for blend in blends]))
        if decays:
            parts = torch._foreach_mul(targets, [blend.decay for blend in blends])
            update = list(torch._foreach_add(update, parts))
    return Write(targets[0], partial(torch._foreach_sub_, targets, update, alpha=alpha))
