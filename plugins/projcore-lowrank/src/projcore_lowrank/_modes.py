"""Products of tensors with matrices along their dimensions, and projections made of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from projcore import Current, Entries, Kind, ProjectionBase, Settings


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


class ModeProjection(ProjectionBase):
    r"""Multiplies a tensor along each dimension by the adjoint of a basis, or by none.

    :math:`G` is projected to :math:`G \times_1 U_1^H \cdots \times_d U_d^H`, and back by
    :math:`U_k`. The columns of :math:`U_k`, the entry ``basis{k}`` of the state, are orthonormal;
    a dimension without such an entry, or with an empty one, is not multiplied.

    State is transported by :math:`C_k = U_k^{new\,H} U_k^{old}` along each dimension, second
    moments by the squares of these weights.
    """

    scope = "tensor"

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            self.through(tensor, adjoints(bases(state, tensor.ndim)), state)
            for tensor, state in zip(tensors, states, strict=True)
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            self.through(tensor, bases(state, tensor.ndim), state)
            for tensor, state in zip(projected_tensors, states, strict=True)
        ]

    def through(self, tensor: Tensor, matrices: Sequence[Tensor | None], state: Entries) -> Tensor:
        """Returns a tensor multiplied by bases or their adjoints; it may be overridden."""
        return multiply(tensor, matrices)

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor] | None:
        if kind not in ("first", "second"):
            return None
        carry = multiply if kind == "first" else multiply_squares
        return [
            carry(tensor, changes(bases(old, tensor.ndim), bases(new, tensor.ndim)))
            for tensor, old, new in zip(tensors, old_states, new_states, strict=True)
        ]


def bases(state: Entries, ndim: int) -> list[Tensor | None]:
    """Returns the basis of each dimension, None for one that is not multiplied."""
    found = (state.get(f"basis{k}") for k in range(ndim))
    return [basis if basis is not None and basis.numel() else None for basis in found]


def adjoints(matrices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns the adjoint of each matrix, None for None."""
    return [None if matrix is None else matrix.mH for matrix in matrices]


def changes(old: Sequence[Tensor | None], new: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns the change of basis along each dimension, None for those that are not multiplied."""
    made = []
    for before, after in zip(old, new, strict=True):
        if before is None or after is None:
            made.append(before if after is None else after.mH)
        else:
            made.append(after.mH @ before)
    return made


def multiply_squares(tensor: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiplies each dimension by the squares of its matrix, as variances transform.

    Variances of real and imaginary parts are the parts of a complex number.
    """
    if not tensor.is_complex():
        return multiply(tensor, [None if each is None else each.square() for each in matrices])
    for k, each in enumerate(matrices):
        if each is None:
            continue
        along = [
            [None] * k + [part.square()] + [None] * (tensor.ndim - k - 1)
            for part in (each.real, each.imag)
        ]
        same, other = (
            torch.view_as_complex(
                torch.stack([multiply(part, squares) for part in (tensor.real, tensor.imag)], -1)
            )
            for squares in along
        )
        swapped = torch.complex(other.imag, other.real)
        tensor = same + swapped
    return tensor
