"""Products of matrices with the bases of a subspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from projcore import Entries
from projcore.errors import ArgumentTypeError
from projcore.ops import wide
from projcore_lowrank.basis import Basis, End, dim_of, ends_of


class Products(NamedTuple):
    """Multiplies matrices, or batches of these, by the bases in their state.

    Attributes:
        basis: The basis, which multiplies from one end.
        dtype: The dtype of the products; None for that of the matrices.
    """

    basis: Basis
    dtype: torch.dtype | None

    def down(self, x: Tensor, state: Entries) -> Tensor:
        """Returns the projection of a matrix."""
        return self._through(self.basis.down, x, state)

    def up(self, z: Tensor, state: Entries) -> Tensor:
        """Returns the unprojection of a projected matrix."""
        return self._through(self.basis.up, z, state)

    def _through(
        self, product: Callable[[Tensor, Entries, End], Tensor], x: Tensor, state: Entries
    ) -> Tensor:
        made = x if self.dtype is None else x.to(self.dtype)
        for end in ends_of(state):
            made = product(made, state, end)
        return made if made.dtype == x.dtype else made.to(x.dtype)

    def coordinates(self, x: Tensor, state: Entries) -> Tensor:
        """Returns the projected point whose unprojection is nearest to `x`."""
        z = wide(x)
        for end in ends_of(state):
            z = self.basis.coordinates(z, state, end)
        return z.to(x.dtype)

    def add_up_(self, target: Tensor, z: Tensor, state: Entries, beta: float, alpha: float) -> None:
        """Sets a target to ``beta * target + alpha * up(z)``."""
        *others, last = ends_of(state)
        for end in others:
            z = self.basis.up(z, state, end)
        self.basis.add_up_(target, z, state, last, beta, alpha)

    def leave_residual_(self, full: Tensor, low: Tensor, state: Entries) -> None:
        """Replaces a matrix by its residual in place."""
        if self.basis.selects:
            (end,) = ends_of(state)
            full.index_fill_(dim_of(end), state[end], 0)
        elif self.dtype is None:
            self.add_up_(full, low, state, 1, -1)
        else:
            full.sub_(self.up(low, state))


def as_dtype(owner: object, dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns a dtype for products, given as a dtype or a name; raises if it is invalid."""
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ArgumentTypeError(
            f"{type(owner).__name__}(compute_dtype={dtype!r}) is not a floating-point dtype, in "
            "which products are computed. Pass for example 'bfloat16', or None."
        )
    return found
