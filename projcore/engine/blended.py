"""Writes parameters by subtracting a scaled update, whose dtype may differ from theirs."""

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
    """Splits the indices of tensors of a space into groups that torch takes in one list."""
    found: dict[Hashable, list[int]] = {}
    for i in indices:
        found.setdefault((space.devices[i], space.template[i].dtype), []).append(i)
    return list(found.values())


def blended(
    targets: Sequence[Tensor],
    update: Sequence[Tensor],
    blends: Sequence[Blend],
    together: Sequence[Sequence[int]] | None = None,
) -> list[Write]:
    """Returns the operations that apply an update to parameters, one for each list of torch's.

    Args:
        targets: The parameters.
        update: The update.
        blends: The factors of each.
        together: The indices to write, in groups that torch takes in one list; by default one
            group of all.
    """
    if together is None:
        together = [range(len(targets))] if targets else []
    return [
        _blended([targets[i] for i in some], [update[i] for i in some], [blends[i] for i in some])
        for some in together
    ]


def _blended(targets: list[Tensor], update: list[Tensor], blends: list[Blend]) -> Write:
    check_writable(targets, update)
    # It is elementwise, so local shards suffice; operations on sharded tensors are slow in torch.
    targets, update = list(map(local, targets)), list(map(local, update))
    alpha = 1.0
    same_scale = len({blend.scale for blend in blends}) == 1
    decays = any(blend.decay for blend in blends)
    if same_scale and not decays:
        alpha = blends[0].scale
    elif same_scale and all(u.dtype is t.dtype for u, t in zip(update, targets, strict=True)):
        # This allocates one list of temporaries; the general case below allocates three.
        given, update = update, list(torch._foreach_mul(targets, [b.decay for b in blends]))
        torch._foreach_add_(update, given, alpha=blends[0].scale)
    else:
        update = list(torch._foreach_mul(update, [blend.scale for blend in blends]))
        if decays:
            parts = torch._foreach_mul(targets, [blend.decay for blend in blends])
            update = list(torch._foreach_add(update, parts))
    return Write(targets[0], partial(torch._foreach_sub_, targets, update, alpha=alpha))
