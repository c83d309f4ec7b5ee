"""Inf and NaN: where they are, and of which parameter an error about them speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.objective import Objective
from projcore.errors import NonFiniteError


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
    some = [tensors[i] for i in places]
    if len({hasattr(tensor, "full_tensor") for tensor in some}) == 1:
        norms = [_whole(norm) for norm in torch._foreach_norm(some)]
    else:  # torch takes no sharded tensors together with others
        norms = [_whole(torch.linalg.vector_norm(tensor)) for tensor in some]
    device = norms[0].device
    sums = torch.stack([norm.to(device, torch.float32) for norm in norms])
    for i, finite in zip(places, sums.isfinite().tolist(), strict=True):
        if not finite and _whole(tensors[i].isfinite().logical_not().sum()):
            return i
    return None


def located(error: NonFiniteError, objective: Objective) -> NonFiniteError:
    """Returns the error with the parameter added whose gradient is to blame."""
    i = first_nonfinite(objective.grads)
    if i is None:
        return error
    (source,), name = objective.space.sources[i], objective.names[i]
    which = str(source) if name is None else f"{name!r}"
    shape = tuple(objective.template[i].shape)
    text = f"{error} The gradient of parameter {which}, of shape {shape}, has Inf or NaN."
    return NonFiniteError(text, skip=error.skip)


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
