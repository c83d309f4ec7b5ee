"""The first choice of a subspace: its basis, and the steps in which it is refreshed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from projcore import Choice, Entries, Settings, require
from projcore.errors import ContractError
from projcore.ops import require_choice
from projcore_lowrank._batches import ENDS, stacked_bases
from projcore_lowrank._matrices import Folding, Side, matrix_shape, resolved_rank
from projcore_lowrank._seeded import mix

End = Literal["left", "right"]
Source = Literal["update", "gradient", "momentum"]
Nonfinite = Literal["raise", "skip"]


class Basis(Choice):
    r"""The basis of a subspace: override `columns`, and more if its state is not a matrix.

    A matrix, shape ``(m, n)``, is compressed from an *end*: from the ``"left"`` as :math:`P^H G`,
    with a basis :math:`P` of shape ``(m, r)``, or from the ``"right"`` as :math:`G P`, with one of
    shape ``(n, r)``. The state of a basis is part of the state of the `Subspace`, a dict for each
    tensor, with an entry named after each end that is compressed.

    Args:
        period: Steps between refreshes, at least 1. A setting.
        stagger: Whether to spread the refreshes of tensors over the period, after the first step.
        source: The tensor to compute it from: the incoming ``"update"``, the ``"gradient"``, or the
            mean of the update and the first moment inside (``"momentum"``).
        nonfinite: Whether Inf or NaN in the source raises an error (``"raise"``), or postpones the
            refresh to the next step (``"skip"``). With ``period=1`` and ``"raise"``, accelerators
            check the first step only: later non-finite values show up in the parameters.

    Attributes:
        orthonormal: Whether its columns are orthonormal.
        selects: Whether its columns are coordinates, whose indices are the entry of the end.
        periodic: Whether it is refreshed after the first step.
        data_dependent: Whether it is computed from `source`, which then has to be finite.
        side: The side that it compresses, if it determines the side.
        has_channels: Whether tensors inside are matrices, whose rows and columns may be scaled.
        traceable: Whether `torch.compile` traces products with it without graph breaks.
        follows_momentum: Whether it is computed from first moments inside, too, which are then in
            ``state["moment"]`` at a refresh, if there are any yet, and their betas in
            ``state["betas"]``, if it ``asks_inside``.
        one_sided: Whether it supports only one end.
        asks_inside: Whether it requires the betas of Adam inside.
    """

    host = ("subspace", "basis")
    orthonormal: bool = True
    selects: ClassVar[bool] = False
    periodic: bool = True
    data_dependent: bool = True
    side: Side | None = None
    has_channels: bool = True
    traceable: bool = True
    asks_inside: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False

    def __init__(
        self,
        period: int = 200,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require_choice(self, "source", source, Source)
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        self.stagger = stagger
        self.source = source
        self.follows_momentum = source == "momentum"
        self.nonfinite = nonfinite
        super().__init__({"period": period})

    def check(self, owner: object, settings: Settings) -> None:
        require(owner, "period", settings["period"], minimum=1)

    # Refresh.

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        """Returns orthonormal columns for a matrix, or for each matrix of a batch.

        Args:
            matrix: Shape ``(..., m, n)``; from the right, the adjoint of the one given.
            rank: `r`, 1 to `m`.
            start: The current basis, or None before the first refresh.
            seed: The seed of random numbers; it differs between steps.

        Returns:
            Shape ``(..., m, r)``.

        Raises:
            ContractError: If neither this method nor `learn` is overridden.
        """
        raise ContractError(
            f"{type(self).__name__} does not compute a basis. Override columns, or learn, which "
            "calls it."
        )

    def begin(
        self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor
    ) -> Entries:
        """Returns the entries of an end before the first refresh.

        ``length`` is that of the columns, ``batch`` the shape of a batch of matrices.
        """
        eye = torch.eye(length, rank, dtype=like.dtype, device=like.device)
        return {end: eye.expand(*batch, length, rank).contiguous() if batch else eye}

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        """Returns the entries of an end with a new basis for the columns of ``matrix``."""
        start = None if state["pending"] else state[end]
        made = self.columns(matrix, rank, start, mix(state["step"], end == "right"))
        return {end: made.to(matrix.dtype)}

    def learn_ends(self, matrix: Tensor, state: Entries, rank: int, settings: Settings) -> Entries:
        """Returns the entries with new bases of all ends.

        Entries that are not in the state are for this step only: `pass_on` handles them.
        """
        entries: Entries = {}
        for end in ends_of(state):
            seen = matrix.mH if end == "right" and matrix.ndim > 1 else matrix
            entries.update(self.learn(end, rank, seen, state, settings))
        return entries

    def learn_all(
        self,
        matrices: list[Tensor],
        ranks: list[int],
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries] | None:
        """Returns the results of `learn_ends` for all tensors; None to run batch by batch."""
        return None

    def track(self, projected: Tensor, states: list[Entries]) -> None:
        """Receives a projected tensor, or a stack of one for each state, in every step.

        For running means of these; changed entries of the states are replaced by new tensors.
        """

    def pass_on(self, entries: Entries, state: Entries) -> None:
        """Moves entries that are for this step only to where they are read."""

    def forgotten(self, state: Entries, end: End) -> tuple[Tensor, Tensor] | None:
        """Returns two factors of the momentum lost by the refresh, for error feedback."""
        return None

    # Properties.

    def matrix(self, state: Entries, end: End, like: Tensor) -> Tensor:
        """Returns the basis, ``(..., length, rank)``, with the dtype and device of a tensor."""
        basis: Tensor = state[end]
        return basis if basis.dtype == like.dtype else basis.to(like.dtype)

    def rank_of(self, state: Entries) -> int:
        """Returns its rank."""
        return int(state[ends_of(state)[0]].shape[-1])

    def resolve(self, rank: int | float, shape: tuple[int, ...]) -> int:
        """Returns the rank of matrices of a shape for a setting."""
        return resolved_rank(rank, shape)

    def shape(self, shape: torch.Size, folding: Folding) -> tuple[int, ...] | None:
        """Returns the shape of a tensor as a matrix; None if it is not projected."""
        return matrix_shape(shape, folding)

    # Products.

    def down(self, x: Tensor, state: Entries, end: End) -> Tensor:
        r"""Returns :math:`P^H x` from the left, :math:`x P` from the right."""
        basis = self.matrix(state, end, x)
        return basis.mH @ x if end == "left" else x @ basis

    def up(self, z: Tensor, state: Entries, end: End) -> Tensor:
        r"""Returns :math:`P z` to the left, :math:`z P^H` to the right."""
        basis = self.matrix(state, end, z)
        return basis @ z if end == "left" else z @ basis.mH

    def coordinates(self, x: Tensor, state: Entries, end: End) -> Tensor:
        """Returns the projected point whose unprojection is nearest to ``x``."""
        return self.down(x, state, end)

    def add_up_(
        self, target: Tensor, z: Tensor, state: Entries, end: End, beta: float, alpha: float
    ) -> None:
        """Sets a target to ``beta * target + alpha * up(z)``, in one operation."""
        basis = self.matrix(state, end, z)
        one, other = (basis, z) if end == "left" else (z, basis.mH)
        if target.ndim == 2:
            target.addmm_(one, other, beta=beta, alpha=alpha)
        else:
            target = target.view(-1, *target.shape[-2:])
            batches = [  # one basis may serve the whole batch
                each.flatten(0, -3) if each.ndim > 2 else each.expand(len(target), *each.shape)
                for each in (one, other)
            ]
            target.baddbmm_(*batches, beta=beta, alpha=alpha)

    def carry(self, tensor: Tensor, old: Entries, new: Entries, end: End, squared: bool) -> Tensor:
        r"""Returns state in a new basis, by :math:`C = P_{new}^H P_{old}` or :math:`|C_{ij}|^2`."""
        change = self.change(old, new, end, tensor)
        if squared:
            change = (change * change.conj()).real.to(tensor.dtype)
        return change @ tensor if end == "left" else tensor @ change.mH

    def change(self, old: Entries, new: Entries, end: End, like: Tensor) -> Tensor:
        r"""Returns :math:`C = P_{new}^H P_{old}`."""
        return self.matrix(new, end, like).mH @ self.matrix(old, end, like)

    # Batches.

    def alike(self, tensor: Tensor, state: Entries) -> Hashable:
        """Returns a key: tensors with equal keys may be multiplied by their bases as a stack."""
        if tensor.ndim != 2:
            return id(state)
        return tuple((end, state[end].shape) for end in ends_of(state))

    def together(self, states: list[Entries]) -> Entries:
        """Returns one state for several tensors, with stacked bases."""
        return stacked_bases(states)

    def both(self, old_states: list[Entries], new_states: list[Entries]) -> tuple[Entries, Entries]:
        """Returns the states of several tensors before and after a change of bases."""
        return self.together(old_states), self.together(new_states)

    def read(self, batches: list[list[Entries]], like: list[Tensor]) -> Sequence[Entries | None]:
        """Returns the stacked bases of each batch, if they are computed from the state.

        Batches are of tensors like the ones given. None if the state holds the bases.
        """
        return [None] * len(batches)

    def materialize(self, states: list[Entries]) -> list[Entries]:
        """Returns entries for a graph: see `ProjectionBase.materialize`."""
        return [{} for _ in states]


def ends_of(state: Entries) -> list[End]:
    """Returns the ends from which a tensor with this state is multiplied."""
    return [end for end in ENDS if end in state]


def dim_of(end: End) -> int:
    """Returns the dimension of a matrix that an end compresses."""
    return -2 if end == "left" else -1
