"""Low-rank subspaces of tensors along each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, OnRefresh, Settings, require
from projcore.errors import ArgumentError, NonFiniteError
from projcore.ops import require_choice, wide
from projcore_lowrank._matrices import Rank
from projcore_lowrank._modes import ModeProjection, adjoints, bases, multiply, unfold
from projcore_lowrank._subspace import dominant
from projcore_lowrank.basis import Nonfinite
from projcore_lowrank.combine import is_factor

Refresh = Literal["hosvd", "hooi"]
Source = Literal["update", "gradient"]


class Tucker(ModeProjection):
    r"""Runs modules on the Tucker core of each tensor of the update, such as a convolution's.

    A tensor :math:`G` of shape :math:`(n_1, \dots, n_d)` is projected to the core

    .. math:: Z = G \times_1 U_1^H \cdots \times_d U_d^H,
        \qquad \text{and back} \quad Z \times_1 U_1 \cdots \times_d U_d

    of shape :math:`(r_1, \dots, r_d)`, where the columns of :math:`U_k`, shape ``(n_k, r_k)``, are
    orthonormal. For the flattened tensor, :math:`U = U_1 \otimes \cdots \otimes U_d`. A dimension
    that keeps its full length is not multiplied. For a matrix, this is low rank on both sides.

    In the first step, and every `period` steps, the bases are refreshed: with ``refresh="hosvd"``
    :math:`U_k` holds the left singular vectors of the :math:`r_k` largest singular values of
    :math:`G_{(k)}`, whose rows are the slices of `G` along dimension `k`. ``"hooi"`` then iterates
    over the dimensions, with :math:`G \times_j U_j^H` over all others `j` in place of `G`, which
    never decreases the norm of the core.

    A stack of matrices, such as the experts of a mixture, is treated as any tensor of three
    dimensions: its matrices share two bases, and the first dimension is compressed unless its rank
    is None. For a separate basis for each matrix use ``LowRank(folding="last2")``.

    Tensors with fewer than `min_ndim` dimensions, those that would not be compressed, and those of
    groups with ``rank=None`` reach the same modules unprojected.

    Args:
        modules: The modules to run inside.
        rank: :math:`r_k`, a setting: an int, a float up to 1 for a fraction of the length, or None
            for the full length; for all dimensions, or a tuple with one for each. Capped at the
            length of the dimension, and at the number of elements of a slice.
        period: Steps between refreshes, at least 1, a setting.
        scale: A factor of the unprojected update, a setting.
        refresh: ``"hosvd"`` or ``"hooi"``.
        iterations: The number of iterations of ``"hooi"``, at least 1.
        min_ndim: The minimum number of dimensions to compress a tensor, at least 2, a setting.
        policy: The policy for state inside at a refresh: ``"keep"``, ``"reset"``, or
            ``"transport"``: by :math:`C_k = U_k^{new\,H} U_k^{old}` along each dimension, second
            moments by the squares of these weights, so they stay nonnegative. If the shape of the
            core changes, ``"keep"`` transports.
        source: The tensor to compute bases from: the incoming ``"update"`` or the ``"gradient"``.
        nonfinite: Whether Inf, NaN or an overflowing sum in the source raises an error
            (``"raise"``), or postpones the refresh to the next step (``"skip"``; initial bases are
            the first coordinates).

    Raises:
        ArgumentError: If a setting is out of range, or a tuple of ranks has the wrong length.
        NonFiniteError: In a step, if the source contains Inf or NaN, or its sum overflows.

    Cost: :math:`\sum_k n_k r_k` state elements (float32 at least), and in each direction a product
    with each basis. A refresh is :math:`O(N \sum_k n_k)` for `N` elements, times the iterations for
    ``"hooi"``.

    Differs from the authors' code: bases are refreshed; uncompressed dimensions are not rotated. As
    there, the core of a matrix is diagonal up to rounding errors in the step of a refresh; the
    ``eps`` of Adam inside keeps quotients of these errors small.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Conv2d(16, 32, 3)
        >>> tucker = Tucker([Adam()], rank=(0.25, 0.25, None, None))
        >>> optimizer = Optimizer(model.parameters(), tucker, LR(1e-3))

    References:
        George et al., 2025, https://arxiv.org/abs/2501.02379
        De Lathauwer, De Moor, Vandewalle, 2000, https://doi.org/10.1137/S0895479896305696 (HOSVD),
        https://doi.org/10.1137/S0895479898346995 (HOOI, section 4)
    """

    kinds = {"step": "scalar", "pending": "scalar"}

    def __init__(
        self,
        modules: Any,
        rank: Rank | Sequence[Rank],
        period: int = 200,
        scale: float = 1.0,
        refresh: Refresh = "hosvd",
        iterations: int = 10,
        min_ndim: int = 3,
        policy: OnRefresh = "keep",
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require_choice(self, "refresh", refresh, Refresh)
        require_choice(self, "policy", policy, OnRefresh)
        require_choice(self, "source", source, Source)
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        require(self, "iterations", iterations, minimum=1)
        self.iterations = iterations if refresh == "hooi" else 0
        self.on_refresh = policy
        self.nonfinite = nonfinite
        if source == "gradient":
            self.needs = frozenset({"grads"})
        ranks = tuple(rank) if isinstance(rank, Sequence) else rank
        defaults = {"rank": ranks, "period": period, "scale": scale, "min_ndim": min_ndim}
        super().__init__(modules, project_update, project_params, project_grad, defaults)

    def check(self, settings: Settings) -> None:
        rank = settings["rank"]
        for each in rank if isinstance(rank, (tuple, list)) else [rank]:
            if isinstance(each, float):
                require(self, "rank", each, above=0, maximum=1)
            elif each is not None:
                require(self, "rank", each, minimum=1)
        require(self, "period", settings["period"], minimum=1)
        require(self, "scale", settings["scale"], above=0)
        require(self, "min_ndim", settings["min_ndim"], minimum=2)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        if tensor.ndim < settings["min_ndim"] or settings["rank"] is None or 0 in tensor.shape:
            return False
        return any(rank is not None for rank in core(tensor, settings["rank"]))

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        dtype = torch.promote_types(tensor.dtype, torch.float32)  # no bfloat16 in decompositions
        ranks = core(tensor, settings["rank"])
        first = [
            None if rank is None else torch.eye(side, rank, dtype=dtype, device=tensor.device)
            for side, rank in zip(tensor.shape, ranks, strict=True)
        ]
        return {"step": 0, "pending": 1, **kept(first, tensor)}

    def combine(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        full = self.unproject(result, params, grads, loss, states, settings, "update")
        return [
            tensor * values["scale"] if is_factor(values["scale"]) else tensor
            for tensor, values in zip(full, settings, strict=True)
        ]

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries | None] | None:
        source = tensors if grads is None else grads
        due = [
            i
            for i, (state, values) in enumerate(zip(states, settings, strict=True))
            if not source[i].is_meta and self._due(source[i], state, values)
        ]
        usable = [i for i in due if self._usable(source[i])]
        new: list[Entries | None] = [None] * len(states)
        for i in usable:
            new[i] = self._learnt(source[i], settings[i])
        for i, state in enumerate(states):
            state["pending"] = int(i in due and i not in usable)
            state["step"] += 1
        return new if usable else None

    def _due(self, tensor: Tensor, state: Entries, settings: Settings) -> bool:
        if state["pending"] or state["step"] % settings["period"] == 0:
            return True
        ranks = [None if each is None else each.shape[1] for each in bases(state, tensor.ndim)]
        return ranks != core(tensor, settings["rank"])

    def _usable(self, tensor: Tensor) -> bool:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        # No product with orthonormal columns exceeds the sum of absolute values.
        if bool(torch.linalg.vector_norm(tensor, 1, dtype=wide).isfinite()):
            return True
        if self.nonfinite == "skip":
            return False
        raise NonFiniteError(
            f"Tucker was given an update of shape {tuple(tensor.shape)} that contains Inf or NaN, "
            "or whose sum overflows. Bases are computed from finite numbers only. Skip this step, "
            "or pass nonfinite='skip' to keep the bases."
        )

    def _learnt(self, tensor: Tensor, settings: Settings) -> Entries:
        full = wide(tensor)
        found = hosvd(full, core(tensor, settings["rank"]))
        for _ in range(self.iterations):
            found = hooi(full, found)
        return kept(found, tensor)


def core(tensor: Tensor, rank: Rank | Sequence[Rank]) -> list[int | None]:
    """Returns the rank of each dimension of a tensor, None for those that keep their full length.

    Raises:
        ArgumentError: If a sequence of ranks has the wrong length.
    """
    if not isinstance(rank, Sequence):
        rank = [rank] * tensor.ndim
    if len(rank) != tensor.ndim:
        raise ArgumentError(
            f"Tucker(rank={rank!r}) was given a tensor of shape {tuple(tensor.shape)}. A sequence "
            "of ranks must have one for each dimension. Put such tensors into a parameter group "
            "with another rank, or None."
        )
    resolved: list[int | None] = []
    for side, each in zip(tensor.shape, rank, strict=True):
        if each is None:
            resolved.append(None)
            continue
        wanted = max(1, round(each * side)) if isinstance(each, float) else each
        wanted = min(wanted, side, tensor.numel() // side)
        resolved.append(None if wanted == side else wanted)
    return resolved


def hosvd(tensor: Tensor, ranks: Sequence[int | None]) -> list[Tensor | None]:
    """Returns, for dimensions with a rank, the leading left singular vectors of the unfolding."""
    return [
        None if rank is None else leading(unfold(tensor, k), rank) for k, rank in enumerate(ranks)
    ]


def hooi(tensor: Tensor, bases: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns bases computed sequentially, each from the projection along the others."""
    found = list(bases)
    for k, basis in enumerate(bases):
        if basis is not None:
            others = [None if j == k else other for j, other in enumerate(found)]
            found[k] = leading(unfold(multiply(tensor, adjoints(others)), k), basis.shape[1])
    return found


def leading(matrix: Tensor, rank: int) -> Tensor:
    """Returns the left singular vectors of a matrix's largest singular values.

    The largest entry of each is real and positive: otherwise, for nearly diagonal matrices such as
    a core, rounding errors would determine the signs. For a wide matrix, the small triangular
    factor is decomposed, which has the same vectors.
    """
    if matrix.shape[1] > matrix.shape[0]:
        matrix = torch.linalg.qr(matrix.mH, mode="r").R.mH
    vectors = dominant(matrix, rank, "svd")
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * vectors.gather(0, largest).sgn().conj()


def kept(bases: Sequence[Tensor | None], tensor: Tensor) -> Entries:
    """Returns bases as stored: that of an uncompressed dimension is empty."""
    empty = tensor.new_empty(0)
    return {f"basis{k}": empty if basis is None else basis for k, basis in enumerate(bases)}
