"""Views of tensors as matrices, and the sides to compress."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Side = Literal["std", "reverse_std", "left", "right", "full"]
Folding = Literal["fold", "last2"]
Rank = int | float | None


def matrix_shape(shape: torch.Size, folding: Folding) -> tuple[int, ...] | None:
    """Returns the shape of a tensor as a matrix, or a batch of them; None if it is a vector.

    Dimensions of length 1 are dropped. More than two others are flattened to ``(d0, -1)``, or are a
    batch of matrices in the last two.
    """
    if torch.compiler.is_compiling():  # the compiler warns about caches
        return _matrix_shape(shape, folding)
    return _known_shape(shape, folding)


def _matrix_shape(shape: torch.Size, folding: Folding) -> tuple[int, ...] | None:
    sides = [side for side in shape if side != 1]
    if len(sides) < 2 or 0 in sides:
        return None
    if folding == "last2":
        return tuple(sides)
    return sides[0], torch.Size(sides[1:]).numel()


_known_shape = lru_cache(maxsize=4096)(_matrix_shape)  # called several times per step


def compressed(shape: tuple[int, ...], side: Side) -> tuple[Literal["left", "right"], ...]:
    """Returns the sides from which a matrix of a shape is multiplied.

    From the left, its columns, of length `m`, are compressed; from the right its rows. ``"std"``
    compresses the shorter: the rows if ``m >= n``, which includes square matrices.
    """
    if side == "left" or side == "right":
        return (side,)
    if side == "full":
        return ("left", "right")
    m, n = shape[-2:]
    return ("right",) if (m >= n) == (side == "std") else ("left",)


def resolved_rank(rank: int | float, shape: tuple[int, ...]) -> int:
    """Returns a rank as an integer, capped at the shorter side; a float is a fraction of it."""
    shorter = min(shape[-2:])
    wanted = round(rank * shorter) if isinstance(rank, float) else rank
    return max(1, min(wanted, shorter))


def view_of(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Returns a view as a matrix or batch that products can write to; None if there is none."""
    if tensor.is_contiguous():
        return tensor.view(shape)
    return tensor if tensor.shape == shape and len(shape) <= 3 else None
