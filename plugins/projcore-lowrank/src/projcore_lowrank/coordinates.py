"""Bases of coordinates: some rows, columns or entries of each tensor."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, Settings
from projcore.ops import require_choice, wide
from projcore_lowrank._batches import batches
from projcore_lowrank._matrices import Folding, resolved_rank
from projcore_lowrank._seeded import choices, mix, sample_scores
from projcore_lowrank.basis import Basis, End, Nonfinite, Source, dim_of, ends_of
from projcore_lowrank.random_basis import require_seed

Select = Literal["top", "random", "norm", "cyclic"]
Axis = Literal["columns", "rows", "entries"]

# Up to this length a stable sort is fast on a CPU; beyond, it takes several times as long as a
# search for the threshold, which would synchronize with a device, so devices always sort.
SORTED = 1 << 16


class Chosen(Basis):
    """Some vectors of a fixed orthonormal basis, given by their indices.

    The state holds the indices, ascending, and the length of the vectors. The matrices of a batch
    share them.
    """

    def begin(
        self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor
    ) -> Entries:
        return {end: torch.arange(rank, device=like.device), f"{end}_length": length}

    def rank_of(self, state: Entries) -> int:
        return len(state[ends_of(state)[0]])

    def carry(self, tensor: Tensor, old: Entries, new: Entries, end: End, squared: bool) -> Tensor:
        """Returns state that is kept for retained vectors, and zero for new ones."""
        before, now = old[end], new[end]
        places = torch.searchsorted(before, now).clamp_(max=before.shape[-1] - 1)
        stays = before.gather(-1, places) == now
        dim = dim_of(end)
        if now.ndim > 1:
            across = -2 if dim == -1 else -1
            shape = [*tensor.shape]
            shape[dim] = now.shape[-1]
            found = tensor.gather(dim, places.unsqueeze(across).expand(shape))
            return found.mul_(stays.unsqueeze(across))
        found = tensor.index_select(dim, places)
        return found.mul_(stays.unsqueeze(-1) if dim == -2 else stays)


class Coordinates(Chosen):
    r"""Selected rows, columns or entries of each tensor.

    With the set of selected indices :math:`I`, a tensor :math:`x` is projected to
    :math:`z = x_I`: columns of a matrix, shape ``(m, r)``, rows, shape ``(r, n)``, or entries of
    a tensor of any shape, as a vector of length `r`. Indices are ascending, and are selected every
    ``period`` steps by ``select``:

    - ``"top"``: the largest norms. Ties select the first.
    - ``"norm"``: drawn sequentially without replacement, with probabilities proportional to the
      norm. Those of norm zero are drawn last.
    - ``"random"``: drawn uniformly without replacement.
    - ``"cyclic"``: the next `r`, cyclically.

    For rows and columns, vectors are not projected, and for entries tensors with one element. The
    matrices of a batch share indices. The rank is the number of indices, or a fraction if a float.
    Transported state inside is kept for indices that remain selected, and is zero for new ones.

    Args:
        select: The selection rule, as above.
        axis: Whether to select ``"columns"``, ``"rows"`` or ``"entries"``.
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        seed: For ``"norm"`` and ``"random"``, at least 0. Checkpoints of other seeds are rejected.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: 8 bytes for each index. Copies of the selection in both directions; no products. A refresh
    is one pass for the norms, and a sort of all norms.

    Differs from FRUGAL's code: fractions are rounded, not truncated. Differs from GRASS: the
    selection is not weighted by its probability.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=0.25, basis=Coordinates("random"), memory="reset"))
        subspace([adam()], rank=0.25, basis=coordinates(select='random'), memory=reset())

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (FRUGAL, algorithm 1); Muhamed et
        al., 2024, https://arxiv.org/abs/2406.17660 (GRASS). Sequential sampling by the order
        of exponential numbers: Efraimidis, Spirakis, 2006,
        https://doi.org/10.1016/j.ipl.2005.11.003.
    """

    kinds = {"seed": "fixed", "refreshes": "scalar"}
    selects = True

    def __init__(
        self,
        select: Select = "top",
        axis: Axis = "columns",
        period: int = 200,
        seed: int = 0,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require_choice(self, "select", select, Select)
        require_choice(self, "axis", axis, Axis)
        require_seed(self, seed)
        self.select = select
        self.axis = axis
        self.seed = seed
        self.side = "left" if axis == "rows" else "right"
        self.has_channels = axis != "entries"
        self.data_dependent = select in ("top", "norm")
        super().__init__(period, stagger, source, nonfinite)

    def shape(self, shape: torch.Size, folding: Folding) -> tuple[int, ...] | None:
        if self.axis == "entries":
            return (shape.numel(),) if shape.numel() > 1 else None
        return super().shape(shape, folding)

    def resolve(self, rank: int | float, shape: tuple[int, ...]) -> int:
        return resolved_rank(rank, (shape[-2] if self.axis == "rows" else shape[-1],))

    def begin(
        self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor
    ) -> Entries:
        made = super().begin(end, length, rank, batch, like)
        return {**made, "seed": self.seed, "refreshes": 0}

    def alike(self, tensor: Tensor, state: Entries) -> Hashable:
        return id(state)  # the selection is copied matrix by matrix

    def learn_all(
        self,
        matrices: list[Tensor],
        ranks: list[int],
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries] | None:
        if self.select != "random":
            return None
        (end,) = ends_of(states[0])
        lengths = [state[f"{end}_length"] for state in states]
        new: list[Any] = [None] * len(states)
        for places in batches(matrices, list(zip(lengths, ranks, strict=True))):
            first = places[0]
            keys = [self._key(states[i]) for i in places]
            drawn = choices(keys, ranks[first], lengths[first], matrices[first].device)
            for i, indices in zip(places, drawn.unbind(), strict=True):
                new[i] = {end: indices.clone(), "refreshes": states[i]["refreshes"] + 1}
        return new

    def _key(self, state: Entries) -> int:
        return mix(self.seed, state["index"], state["refreshes"])

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        refreshes = state["refreshes"]
        length = state[f"{end}_length"]
        if self.select == "cyclic":
            indices = torch.arange(rank, device=matrix.device).add_(refreshes * rank)
            indices = indices.remainder_(length).sort().values
        else:
            scores = norms_of(matrix)
            if self.select == "norm":
                scores = sample_scores(self._key(state), scores)
            indices = largest(scores, rank)
        return {end: indices, "refreshes": refreshes + 1}

    def matrix(self, state: Entries, end: End, like: Tensor) -> Tensor:
        chosen: Tensor = state[end]
        basis = like.new_zeros(state[f"{end}_length"], len(chosen))
        basis[chosen, torch.arange(len(chosen), device=like.device)] = 1
        return basis

    def down(self, x: Tensor, state: Entries, end: End) -> Tensor:
        return x.index_select(dim_of(end), state[end])

    def up(self, z: Tensor, state: Entries, end: End) -> Tensor:
        dim = dim_of(end)
        shape = list(z.shape)
        shape[dim] = state[f"{end}_length"]
        return z.new_zeros(shape).index_copy_(dim, state[end], z)

    def add_up_(
        self, target: Tensor, z: Tensor, state: Entries, end: End, beta: float, alpha: float
    ) -> None:
        assert beta == 1  # the decay of all elements is a separate operation
        dim, chosen = dim_of(end), state[end]
        if end == "left" or target.ndim == 1:
            target.index_add_(dim, chosen, z, alpha=alpha)
        else:  # index_add_ would process the columns one by one
            part = target.index_select(dim, chosen).add_(z, alpha=alpha)
            target.index_copy_(dim, chosen, part)


def norms_of(matrix: Tensor) -> Tensor:
    """Returns the norms of rows, over all matrices of a batch; of a vector, of its entries."""
    sizes = wide(matrix).abs()
    others = [dim for dim in range(matrix.ndim) if dim != matrix.ndim - 2]
    return sizes if matrix.ndim == 1 else sizes.square_().sum(others).sqrt_()


def largest(scores: Tensor, count: int) -> Tensor:
    """Returns the indices of the largest numbers, ascending; ties select the first.

    For a batch, those of each row.
    """
    if scores.shape[-1] <= SORTED or not scores.is_cpu:
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[..., :count].sort(-1).values
    least = scores.kthvalue(len(scores) - count + 1).values
    above = (scores > least).nonzero().squeeze(1)
    equal = (scores == least).nonzero().squeeze(1)
    return torch.cat([above, equal[: count - len(above)]]).sort().values
