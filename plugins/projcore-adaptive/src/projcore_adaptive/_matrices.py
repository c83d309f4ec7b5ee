"""Tensors as matrices, and as stacks of these."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Folding = Literal["fold", "last2"]


class MatrixShape(NamedTuple):
    """The shape of a tensor as matrices.

    Attributes:
        leading: The dimensions that index matrices; none for a single one.
        rows: The number of rows of each.
        columns: The number of columns.
    """

    leading: torch.Size
    rows: int
    columns: int


def matrix_shape(shape: torch.Size, batch_dims: int, folding: Folding) -> MatrixShape:
    """Returns the shape of a tensor as matrices; `batch_dims` dimensions index independent tensors.

    A tensor of more than two dimensions is a matrix of the first by all other dimensions
    (``"fold"``), or a stack of matrices of the last two (``"last2"``). A vector or scalar is a
    matrix of one row.
    """
    leading, shape = shape[:batch_dims], shape[batch_dims:]
    if folding == "last2" and len(shape) > 2:
        return MatrixShape(leading + shape[:-2], shape[-2], shape[-1])
    if len(shape) > 1:
        return MatrixShape(leading, shape[0], shape[1:].numel())
    return MatrixShape(leading, 1, shape.numel())


def as_matrices(tensors: Sequence[Tensor], shapes: Sequence[MatrixShape]) -> list[Tensor]:
    """Returns tensors in these shapes, the leading dimensions first."""
    return [
        tensor.reshape(*leading, rows, columns)
        for tensor, (leading, rows, columns) in zip(tensors, shapes, strict=True)
    ]


def batches(tensors: Sequence[Tensor], keys: Sequence[Hashable], most: int) -> list[list[int]]:
    """Returns indices of tensors by batch: those of one key, up to a number of elements.

    Example:
        >>> batches([torch.ones(2), torch.ones(3), torch.ones(2)], ["a", "b", "a"], 8)
        [[0, 2], [1]]
    """
    found: dict[Hashable, list[list[int]]] = {}
    sizes: dict[Hashable, int] = {}
    for i, (tensor, key) in enumerate(zip(tensors, keys, strict=True)):
        runs = found.setdefault(key, [])
        if not runs or sizes[key] + tensor.numel() > most:
            runs.append([])
            sizes[key] = 0
        runs[-1].append(i)
        sizes[key] += tensor.numel()
    return [run for runs in found.values() for run in runs]
