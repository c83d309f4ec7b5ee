"""Products of tensors with matrices along their dimensions, and their unfoldings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def multiply(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    r"""Multiplies a tensor along each of its dimensions by a matrix, or by none.

    :math:`y_{j_1 \dots j_d} = \sum_{i_1 \dots i_d} M^{(1)}_{j_1 i_1} \cdots M^{(d)}_{j_d i_d}
    x_{i_1 \dots i_d}`, computed in the common dtype of the matrices, and returned in that of a
    non-empty `x`. Batches of matrices are supported for the last two dimensions only.
    """
    given = x.dtype
    x = x.to(next((matrix.dtype for matrix in matrices if matrix is not None), given))
    if x.ndim == 2 or any(matrix is not None and matrix.ndim > 2 for matrix in matrices):
        left, right = matrices[-2:]
        x = x if left is None else left @ x
        return (x if right is None else x @ right.mT).to(given)
    # Each product moves the first dimension to the end; all of them restore the order.
    shape, passed = [], 1
    for length, matrix in zip(x.shape, matrices, strict=True):
        if matrix is None:
            passed *= length
            shape.append(length)
            continue
        if passed > 1:
            x = x.reshape(passed, -1).mT
            passed = 1
        x = x.reshape(length, -1).mT @ matrix.mT
        shape.append(matrix.shape[0])
    if passed > 1:
        x = x.reshape(passed, -1).mT
    return x.reshape(shape).to(given)


def unfold(x: Tensor, dim: int) -> Tensor:
    """Returns a tensor as a matrix whose rows are its slices along a dimension."""
    return x.movedim(dim, 0).reshape(x.shape[dim], -1)
