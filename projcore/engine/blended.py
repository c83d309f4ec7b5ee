"""Writing parameters by subtracting a scaled update, which may be of any dtype that fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from projcore._checks import check_writable
from projcore.core.writer import Blend, Write


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
