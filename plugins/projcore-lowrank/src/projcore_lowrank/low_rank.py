"""Low-rank subspaces, learnt from what goes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Node, OnRefresh, Settings
from projcore.ops import require_choice
from projcore_lowrank._combine import Rule
from projcore_lowrank._matrices import Folding, Rank, Side
from projcore_lowrank._options import Nonfinite, Options, Second, Source
from projcore_lowrank._seeded import mix
from projcore_lowrank._subspace import Method, dominant
from projcore_lowrank.subspace import End, Subspace

Refresh = Literal["svd", "gram", "randomized", "subspace", "subspace_whole", "none"]


class Learnt(Subspace):
    """A subspace whose bases are matrices, made from what goes in."""

    method: Method

    def _set_method(self, refresh: Refresh) -> None:
        require_choice(self, "refresh", refresh, Refresh)
        self.periodic = refresh != "none"
        self.method = "subspace" if refresh == "none" else refresh

    def begin(self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor) -> Node:
        eye = torch.eye(length, rank, dtype=like.dtype, device=like.device)
        return {end: eye.expand(*batch, length, rank).contiguous() if batch else eye}

    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        if end == "right" and self.method == "svd":
            # Of the matrix as it lies: its transpose gives other signs, which memory that is kept
            # depends on, than the authors' codes have.
            wide = torch.promote_types(matrix.dtype, torch.float32)
            rows = torch.linalg.svd(matrix.mH.to(wide), full_matrices=False).Vh
            # A slice would keep all that it was cut from.
            basis = rows[..., :rank, :].mH.clone(memory_format=torch.contiguous_format)
        else:
            basis = dominant(
                matrix,
                rank,
                self.method,
                start=None if state["pending"] else state[end],
                generator=mix(state["step"], end == "right"),
            )
        if basis.is_complex() and self.method in ("svd", "gram"):
            basis = with_fixed_phases(basis)
        return {end: basis.to(matrix.dtype)}

    def basis(self, state: Node, end: End, like: Tensor) -> Tensor:
        basis: Tensor = state[end]
        return basis if basis.dtype == like.dtype else basis.to(like.dtype)

    def read(self, batches: list[list[Node]], like: list[Tensor]) -> Sequence[Node | None]:
        # These rules read them again, to write a batch at once.
        if self.options.combine in ("fira", "sign"):
            return [None if len(batch) == 1 else self.together(batch) for batch in batches]
        return super().read(batches, like)

    def rank_of(self, state: Node) -> int:
        return int(state[self.ends(state)[0]].shape[-1])


def with_fixed_phases(basis: Tensor) -> Tensor:
    """Turns each complex column so that its largest entry is a positive number.

    Decompositions leave the phases open, and they jump when a matrix changes by a rounding error;
    modules that treat real and imaginary parts by themselves, as Adam, see the difference.
    """
    largest = basis.gather(-2, basis.abs().argmax(-2, keepdim=True))
    return basis * largest.conj().sgn()


class LowRank(Learnt):
    r"""Runs modules in the top singular subspace of each matrix of the update.

    A matrix :math:`G`, shape ``(m, n)``, is inside :math:`R = P^H G`, shape ``(r, n)``, where the
    columns of :math:`P` span the left singular vectors of its `r` largest singular values; or, for
    ``m >= n``, :math:`G P` with the right ones. What the modules make of it, :math:`N`, comes out
    as :math:`\alpha P N`, and by ``combine`` what has no place inside may come beside it.

    Inside, a closure is evaluated on the plane through the current point: what the basis does not
    span stays. Vectors, and tensors of groups with ``rank=None``, pass as they are to the same
    modules. What writes the parameters is a product straight into them, where nothing but a
    learning rate, a factor or weight decay follows in the optimizer.

    Args:
        modules: What to run inside.
        rank: `r`: at least 1, capped at the shorter side; a float is a part of that; None, of a
            group, lets its tensors pass. A setting; a new rank acts in the next step.
        period: Steps between refreshes of a basis, at least 1. A setting.
        scale: :math:`\alpha`, above 0. A setting.
        side: Which side is compressed: ``"std"`` the shorter (the rows, :math:`G P`, if the matrix
            is square), ``"reverse_std"`` the longer, which makes memory inside smaller still,
            ``"left"``, ``"right"``, or ``"full"``, both: :math:`P^H G Q`.
        refresh: How a basis is made. ``"subspace"``: from the one before it, or from random
            directions if there is none; of a matrix near a square, from random sums of columns
            first, and from all where these miss much. ``"subspace_whole"``: from all at once,
            which is faster where few singular values stand out. ``"randomized"``: from random
            directions. ``"gram"``: from the eigenvectors of :math:`G G^H`. ``"svd"``: exact.
            ``"none"``: once, at the first step, as ``"subspace"``.
        policy: What becomes of memory inside at a refresh: ``"keep"``, ``"reset"``, or
            ``"transport"``. Where the rank changes, what would be kept is transported.
        second: How second moments are transported, through :math:`C = P_{new}^H P_{old}`:
            ``"squared"``, by :math:`|C_{ij}|^2`, which is the diagonal of the transformed
            covariance; ``"absolute"``, as :math:`|C v|`; ``"keep"``: they stay, while the rank
            does; ``"reset"``: all memory begins anew.
        stagger: Spread the refreshes of different tensors over the period. The first step has all.
        combine: ``"unproject"``, as above; or beside it the residual :math:`G - P R`, times
            ``residual_scale``: as it is (``"residual"``), its signs (``"sign"``, FRUGAL), or
            each channel scaled as it was inside (``"fira"``). Or nothing but :math:`G`, scaled as
            it was inside by channel (``"apollo"``) or as a whole (``"apollo_mini"``).
        residual_scale: As said, at least 0. A setting.
        limit: For Fira and APOLLO: by how much, at most, the norm of what they scale grows from one
            step to the next, at least 1; None for no limit.
        error_feedback: Keep what was left out of an update, and add it to the next. It takes a
            tensor of the parameter's size.
        source: What a basis is learnt from: the ``"update"`` that comes in, the ``"gradient"``, or
            the mean of the update and the first moment inside (``"momentum"``).
        folding: A tensor of more than two sides is a matrix of the first by the rest (``"fold"``),
            or a batch of matrices of the last two (``"last2"``). Sides of 1 do not count. A
            setting, fixed once there is memory.
        nonfinite: Inf or NaN in what a basis is to be learnt from is an error (``"raise"``), or the
            basis stays, and is learnt in the next step (``"skip"``).
        compute_dtype: A dtype for the products with the bases, such as ``"bfloat16"``.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if what a basis is to be learnt from is not finite.

    Cost: per matrix of sides ``s <= l``: memory of ``s r`` for the basis beside that of the
    modules on ``r l`` elements; two products of ``2 s l r`` operations a step; a refresh is about
    two such products more with ``"subspace"``.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> optimizer = Optimizer(model.parameters(), LowRank([Adam()], rank=4), LR(1e-2))

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2); `combine`: Zmushko et
        al., 2024, https://arxiv.org/abs/2411.07837; Chen et al., 2024,
        https://arxiv.org/abs/2410.01623 (equations 4 to 7); Zhu et al., 2024,
        https://arxiv.org/abs/2412.05270 (algorithm 1).
    """

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        period: int = 200,
        scale: float = 1.0,
        side: Side = "std",
        refresh: Refresh = "subspace",
        policy: OnRefresh = "keep",
        second: Second = "squared",
        stagger: bool = True,
        combine: Rule = "unproject",
        residual_scale: float = 1.0,
        limit: float | None = 1.01,
        error_feedback: bool = False,
        source: Source = "update",
        folding: Folding = "fold",
        nonfinite: Nonfinite = "raise",
        compute_dtype: torch.dtype | str | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        self._set_method(refresh)
        options = Options(
            rank=rank,
            period=period,
            scale=scale,
            residual_scale=residual_scale,
            side=side,
            folding=folding,
            policy=policy,
            second=second,
            stagger=stagger,
            combine=combine,
            limit=limit,
            error_feedback=error_feedback,
            source=source,
            nonfinite=nonfinite,
            compute_dtype=compute_dtype,
            project_update=project_update,
            project_params=project_params,
            project_grad=project_grad,
        )
        super().__init__(modules, options)


class GaLore(Learnt):
    r"""Runs modules in the top singular subspace of each gradient, as GaLore is published.

    `LowRank` with the authors' choices: an exact singular value decomposition every ``period``
    steps for all matrices at once, memory kept as it is when the basis changes, and the update
    times :math:`\alpha = 1/4`.

    Args:
        modules: What to run inside.
        rank: At least 1, capped at the shorter side; a float is a part of that; None, of a group,
            lets its tensors pass. A setting.
        period: Steps between refreshes, at least 1. A setting.
        scale: :math:`\alpha`, above 0. A setting.
        side: Which side is compressed, as for `LowRank`.
        refresh: How a basis is made, as for `LowRank`.
        stagger: Spread the refreshes of different tensors over the period.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.
        folding: How tensors of more than two sides are taken, as for `LowRank`. A setting.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if what a basis is to be learnt from is not finite.

    Cost: as `LowRank`; a refresh is the decomposition of each matrix.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> optimizer = Optimizer(model.parameters(), GaLore([Adam()], rank=4), LR(1e-2))

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2).
    """

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        period: int = 200,
        scale: float = 0.25,
        side: Side = "std",
        refresh: Refresh = "svd",
        stagger: bool = False,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
        folding: Folding = "fold",
    ) -> None:
        self._set_method(refresh)
        options = Options(
            rank=rank,
            period=period,
            scale=scale,
            side=side,
            stagger=stagger,
            folding=folding,
            project_update=project_update,
            project_params=project_params,
            project_grad=project_grad,
        )
        super().__init__(modules, options)
