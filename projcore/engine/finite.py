"""Inf and NaN: where they are, and of which parameter an error about them speaks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projcore.core.objective import Objective
from projcore.errors import NonFiniteError
from projcore.ops import norms_of_kinds, unsharded


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """Returns the index of the first tensor that has an Inf or a NaN, or None.

    Cost: one reduction over each tensor, in one kernel where torch has it, and one wait for the
    device. Numbers whose squares overflow are looked at again. Tensors on the device ``meta`` have
    no numbers, and pass. Of a sharded tensor (`DTensor`) all shards count.

    Example:
        >>> first_nonfinite([torch.ones(2), torch.tensor([0.0, torch.inf])])
        1
    """
    places = [i for i, tensor in enumerate(tensors) if not tensor.is_meta]
    if not places:
        return None
    found = norms_of_kinds([tensors[i] for i in places])
    device = found[0].device
    sums = torch.stack([norm.to(device, torch.float32) for norm in found])
    for i, finite in zip(places, sums.isfinite().tolist(), strict=True):
        if not finite and unsharded(tensors[i].isfinite().logical_not().sum()):
            return i
    return None


def located(error: NonFiniteError, objective: Objective) -> NonFiniteError:
    """Returns the error with the parameter added whose gradient is to blame."""
    i = first_nonfinite(objective.grads)
    if i is None:
        return error
    (source,), name = objective.space.sources[i], objective.space.names[i]
    which = str(source) if name is None else f"{name!r}"
    shape = tuple(objective.template[i].shape)
    text = f"{error} The gradient of parameter {which}, of shape {shape}, has Inf or NaN."
    return NonFiniteError(text, skip=error.skip)
