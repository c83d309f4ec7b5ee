"""Alice's basis: leading eigenvectors, and random columns from their complement."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, require
from projcore.ops import wide
from projcore_lowrank._batches import apart, stacked
from projcore_lowrank._seeded import mix
from projcore_lowrank._subspace import dominant, resized, settled
from projcore_lowrank.basis import Basis, End, Nonfinite, Source, ends_of
from projcore_lowrank.random_basis import require_seed
from projcore_lowrank.singular import with_fixed_phases

TRACKED = "tracked"


class Switching(Basis):
    r"""Leading eigenvectors of :math:`Q`, and random columns from their complement, as in Alice.

    With :math:`\beta = 0`, :math:`Q` is :math:`G G^H`, otherwise a running mean of it. The state
    holds its projection to the subspace, which is updated in every step:

    .. math::
        \tilde Q \leftarrow \beta \tilde Q + (1 - \beta) R R^H, \quad R = P^H G, \qquad
        Q = \beta P \tilde Q P^H + (1 - \beta) G G^H

    A refresh takes one step of subspace iteration, :math:`B = \operatorname{qr}(Q P)`, and sorts
    the columns by the eigenvectors of :math:`B^H Q B`; the first ones are kept, and Gaussian
    columns, orthogonalized, complete the basis to `r`. :math:`Q` is never formed. The first basis
    uses singular vectors of :math:`G`. :math:`\tilde Q` is transported to the new basis
    as :math:`C \tilde Q C^H`, :math:`C = P_{new}^H P`.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        leading: The number of eigenvectors, at least 1, capped at the rank; a float is a fraction
            of the rank. By default 40 of 256, as published.
        beta: :math:`\beta`, at least 0 and less than 1; 0 stores no :math:`\tilde Q` (Alice-0).
        seed: The seed of the random columns, at least 0.

    Raises:
        ArgumentError: If an argument is out of range or a choice unknown.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: state of ``r^2`` for :math:`\tilde Q`, and ``2 l r^2`` operations in each step to update
    it; about ``6 s l r + 12 s r^2 + O(r^3)`` every ``period`` steps.

    Differs from the paper: columns are drawn uniformly from the complement, not from the columns of
    one of its bases; the paper keeps :math:`\tilde Q` unchanged at a refresh, although its
    coordinates change; its first basis is that of the zero matrix.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=8, basis=Switching(leading=2), combine="fira()"))
        subspace([adam()], rank=8, basis=switching(leading=2), combine=fira())

    References:
        Gong et al., 2025, https://arxiv.org/abs/2502.07752 (section 5, switching and tracking).
    """

    kinds = {TRACKED: "opaque"}
    one_sided = True

    def __init__(
        self,
        period: int = 200,
        leading: int | float = 0.15625,
        beta: float = 0.0,
        seed: int = 0,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        if isinstance(leading, float):
            require(self, "leading", leading, above=0, maximum=1)
        else:
            require(self, "leading", leading, minimum=1)
        require(self, "beta", beta, minimum=0, below=1)
        require_seed(self, seed)
        self.leading = leading
        self.beta = beta
        self.seed = seed
        super().__init__(period, stagger, source, nonfinite)

    def begin(
        self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor
    ) -> Entries:
        entries = super().begin(end, length, rank, batch, like)
        if self.beta:
            wide = torch.promote_types(like.dtype, torch.float32)
            entries[TRACKED] = like.new_zeros((*batch, rank, rank), dtype=wide)
        return entries

    def track(self, projected: Tensor, states: list[Entries]) -> None:
        if not self.beta:
            return
        (end,) = ends_of(states[0])
        tracked = stacked([state[TRACKED] for state in states])
        inside = (projected if end == "left" else projected.mH).to(tracked.dtype)
        mean = torch.lerp(tracked, inside @ inside.mH, 1 - self.beta)
        for state, each in zip(states, apart(mean, len(states)), strict=True):
            state[TRACKED] = each

    def together(self, states: list[Entries]) -> Entries:
        entries = super().together(states)
        if self.beta and len(states) > 1:
            entries[TRACKED] = torch.stack([state[TRACKED] for state in states])
        return entries

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        g = wide(matrix)
        before = wide(state[end])
        tracked = state.get(TRACKED)
        wanted = round(self.leading * rank) if isinstance(self.leading, float) else self.leading
        kept = max(1, min(wanted, rank))
        if state["pending"]:
            found = dominant(g, kept, "svd")
        else:
            found = eigenvectors(g, before, tracked, self.beta)[..., :kept]
        basis = resized(with_fixed_phases(found), rank, mix(self.seed, state["step"]))
        entries: Entries = {end: basis.to(matrix.dtype).contiguous()}
        if tracked is not None:
            change = basis.mH @ before
            entries[TRACKED] = change @ tracked @ change.mH
        return entries


def eigenvectors(g: Tensor, basis: Tensor, tracked: Tensor | None, beta: float) -> Tensor:
    r"""Returns a basis after one step of subspace iteration, largest eigenvalue first.

    Args:
        g: :math:`G`, shape ``(..., m, n)``.
        basis: :math:`P`, shape ``(..., m, r)``.
        tracked: :math:`\tilde Q`, shape ``(..., r, r)``, or None for :math:`Q = G G^H`.
        beta: :math:`\beta`.
    """
    product = g @ (g.mH @ basis)
    if tracked is not None:
        product = torch.lerp(product, basis @ tracked, beta)
    columns = settled(product, basis)
    inside = g.mH @ columns
    small = inside.mH @ inside
    if tracked is not None:
        change = columns.mH @ basis
        small = torch.lerp(small, change @ tracked @ change.mH, beta)
    vectors: Tensor = torch.linalg.eigh(small).eigenvectors
    return columns @ vectors.flip(-1)
