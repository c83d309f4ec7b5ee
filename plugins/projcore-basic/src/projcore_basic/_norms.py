"""Norms of lists of tensors, as a whole or one by one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from projcore import first_nonfinite, require
from projcore.errors import NonFiniteError
from projcore.ops import alike, norms_of_kinds

Order = float | Literal["inf"]
Nonfinite = Literal["allow", "raise", "skip"]


def refuse_nonfinite(owner: object, tensors: list[Tensor], nonfinite: Nonfinite) -> None:
    """Raises if there is Inf or NaN in the tensors, unless it is allowed."""
    if nonfinite != "allow" and first_nonfinite(tensors) is not None:
        raise NonFiniteError(
            f"{owner} was given an update that contains Inf or NaN, or whose norm overflows. It "
            "accepts finite updates only. Skip this step, or pass nonfinite='skip', which does so.",
            skip=nonfinite == "skip",
        )


def as_order(owner: object, name: str, value: Order) -> float:
    """Returns the order of a norm as a number; raises unless it is above 0."""
    if value == "inf":
        return math.inf
    require(owner, name, value, above=0)
    return float(value)


def whole_norm(tensors: list[Tensor], order: float) -> Tensor:
    """Returns the norm of all tensors together, a 0-d tensor, as torch's clip_grad_norm_ does.

    Tensors may differ in device and dtype, and some may be sharded: the result is then the norm of
    the norms of each kind, on the device of the first tensor.
    """
    each = norms_of_kinds(tensors, order)
    parts: list[Tensor] = [
        torch.linalg.vector_norm(torch.stack([each[i] for i in places]), order)
        for places in alike(each)
    ]
    if len(parts) == 1:
        return parts[0]
    parts = [part.to(tensors[0].device) for part in parts]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts), order)
    return norm
