"""Finds Inf and NaN in tensors, and the parameter that an error about them is to name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projcore.core.objective import Objective
from projcore.errors import NonFiniteError
from projcore.ops import norms_of_kinds, unsharded


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """Returns the index of the first tensor that has an Inf or a NaN, or None.

    Cost: one reduction over each tensor, fused where torch can do that, and one synchronization. A
    second pass checks tensors whose sum of squares overflows. Tensors on the device ``meta`` have
    no values and are skipped. For a sharded tensor (`DTensor`) all shards are checked.

    Example:
        >>> first_nonfinite([torch.ones(2), torch.tensor([0.0, torch.inf])])
        1
    """
    indices = [i for i, tensor in enumerate(tensors) if not tensor.is_meta]
    if not indices:
        return None
    found = norms_of_kinds([tensors[i] for i in indices])
    device = found[0].device
    sums = torch.stack([norm.to(device, torch.float32) for norm in found])
    for i, finite in zip(indices, sums.isfinite().tolist(), strict=True):
        if not finite and unsharded(tensors[i].isfinite().logical_not().sum()):
            return i
    return None


def located(error: NonFiniteError, objective: Objective) -> NonFiniteError:
    """Returns the error with the name of the first parameter whose gradient has Inf or NaN."""
    i = first_nonfinite(objective.grads)
    if i is None:
        return error
    (source,), name = objective.space.parameter_indices[i], objective.space.names[i]
    which = str(source) if name is None else f"{name!r}"
    shape = tuple(objective.template[i].shape)
    text = f"{error} The gradient of parameter {which}, of shape {shape}, has Inf or NaN."
    return NonFiniteError(text, skip=error.skip)
