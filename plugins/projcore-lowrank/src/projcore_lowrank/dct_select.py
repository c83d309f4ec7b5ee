"""Subspaces of cosines: the frequencies that matter most, of each matrix."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Node, OnRefresh, Settings
from projcore.errors import ArgumentError
from projcore_lowrank._combine import Rule
from projcore_lowrank._matrices import Folding, Rank, Side
from projcore_lowrank._options import Nonfinite, Options, Second, Source
from projcore_lowrank.coordinate_subspace import Chosen, largest
from projcore_lowrank.subspace import End

Norm = Literal[1, 2]


class DCTSelect(Chosen):
    r"""Runs modules on some frequencies of each matrix, along its shorter side.

    The basis :math:`P` consists of `r` columns of the orthonormal DCT matrix of that side,

    .. math:: Q_{ik} = c_k \cos\frac{\pi (2i + 1) k}{2s}, \qquad
        c_0 = \sqrt{1/s}, \quad c_k = \sqrt{2/s},

    those for which the rows of :math:`Q^\top G` have the largest norm; of equal ones, the lowest.
    A matrix :math:`G`, shape ``(m, n)``, is inside :math:`R = P^\top G`, shape ``(r, n)``, or, for
    ``m >= n``, :math:`G P`. What the modules make of it, :math:`N`, comes out as
    :math:`\alpha P N`, and by ``combine`` what has no place inside may come beside it.

    Only the indices are in memory. Vectors pass as they are to the same modules; the matrices of a
    batch share their frequencies.

    Args:
        modules: What to run inside.
        rank: `r`: at least 1, capped at the shorter side; a float is a part of that; None, of a
            group, lets its tensors pass. A setting; a new rank acts in the next step.
        period: Steps between choices of the frequencies, at least 1. A setting.
        norm: By which norm they are chosen: 1, the sum of absolute values, or 2.
        scale: :math:`\alpha`, above 0. A setting.
        side: Which side is compressed: ``"std"`` the shorter (the rows, :math:`G P`, if the matrix
            is square), ``"reverse_std"`` the longer, ``"left"``, ``"right"``, or ``"full"``, both.
        policy: What becomes of memory inside when others are chosen. ``"keep"``: it stays as it is,
            the first now that of the first chosen, and so on. ``"transport"``: that of frequencies
            that stay is kept, and is zero for new ones. ``"reset"``: it begins anew. Where the rank
            changes, what would be kept is transported.
        second: How second moments are transported: as all else (``"squared"``, ``"absolute"``),
            not at all while the rank is the same (``"keep"``), or so that all memory begins anew
            (``"reset"``).
        stagger: Spread the choices for different tensors over the period. The first step has all.
        combine: How the update is made, as for `LowRank`.
        residual_scale: The factor of ``"residual"`` and ``"sign"``, at least 0. A setting.
        limit: For Fira and APOLLO: by how much, at most, the norm of what they scale grows from one
            step to the next, at least 1; None for no limit.
        error_feedback: Keep what was left out of an update, and add it to the next. It takes a
            tensor of the parameter's size.
        source: What the norms are of: the ``"update"`` that comes in, the ``"gradient"``, or the
            mean of the update and the first moment inside (``"momentum"``).
        folding: A tensor of more than two sides is a matrix of the first by the rest (``"fold"``),
            or a batch of matrices of the last two (``"last2"``). Sides of 1 do not count. A
            setting, fixed once there is memory.
        nonfinite: Inf or NaN in what norms are taken of is an error (``"raise"``), or the choice
            stays, and is made in the next step (``"skip"``).
        compute_dtype: A dtype for the products with the basis, such as ``"bfloat16"``.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if what norms are taken of is not finite. With ``period=1`` an
            accelerator is asked in the first step alone: it shows in the parameters.

    Cost: per matrix of sides ``s <= l``: memory of 8 bytes for each index beside that of the
    modules on ``r l`` elements; two products of ``2 s l r`` operations a step; the choice is a
    cosine transform, O(s l log s). A table of ``4 s`` cosines is kept for the process.

    Differs from the authors' code: on both sides the basis is of DCT-II vectors; theirs has DCT-III
    ones on one side if it transforms by a product.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> dct_adam = DCTSelect([Adam()], rank=4, error_feedback=True, policy="transport")
        >>> optimizer = Optimizer(model.parameters(), dct_adam, LR(1e-3))

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (DCT-AdamW); the transform:
        Makhoul, 1980, https://doi.org/10.1109/TASSP.1980.1163351.
    """

    traceable = False  # the tables are kept in caches

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        period: int = 1,
        norm: Norm = 1,
        scale: float = 1.0,
        side: Side = "std",
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
        if norm not in (1, 2):
            raise ArgumentError(
                f"DCTSelect(norm={norm!r}) cannot be. Frequencies are chosen by sums of absolute "
                "values, or of squares. Pass 1 or 2."
            )
        self.norm = norm
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

    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        rows = matrix.movedim(-2, -1)  # what is transformed lies together, mostly
        if matrix.is_complex():
            sizes = torch.complex(cosines_of(rows.real), cosines_of(rows.imag)).abs()
        else:
            sizes = cosines_of(rows).abs_()
        if self.norm == 2:
            sizes.square_()
        if state[end].ndim == 1:  # the matrices of one tensor share their frequencies
            sizes = sizes.flatten(0, -2)
        return {end: largest(sizes.sum(-2), rank)}

    def read(self, batches: list[list[Node]], like: list[Tensor]) -> list[Node]:
        return [
            {end: self.basis(state, end, tensor) for end in self.ends(state)}
            for state, tensor in zip(map(self.together, batches), like, strict=True)
        ]

    def basis(self, state: Node, end: End, like: Tensor) -> Tensor:
        chosen = state[end]
        if chosen.is_floating_point() or chosen.is_complex():  # it was made by `read`
            made: Tensor = chosen.to(like.dtype)
            return made
        length = state[f"{end}_length"]
        wide = torch.promote_types(like.dtype.to_real(), torch.float32)
        table = _cosines(length, wide, like.device)
        steps = torch.arange(1, 2 * length, 2, device=like.device).unsqueeze(-1)  # 2i + 1
        chosen = chosen.unsqueeze(-2)
        basis = table.take((steps * chosen).remainder_(4 * length))
        return basis.mul_(_factors(chosen, length, basis)).to(like.dtype)


def cosines_of(x: Tensor) -> Tensor:
    r"""Returns the orthonormal DCT-II along the last dimension, of real numbers.

    With :math:`V` the Fourier transform of the numbers 0, 2, 4, ..., 5, 3, 1 in that order, and
    :math:`w_k = c_k e^{-i \pi k / 2n} V_k`, the result is the real part of :math:`w_k` at `k`, and
    the negative imaginary part at :math:`n - k`. Computed in float32 or wider.
    """
    length = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    order = torch.arange(length, device=x.device)
    order = torch.cat([order[::2], order[1::2].flip(0)])
    turns = _turns(length, wide.to_complex(), x.device)
    turned = torch.fft.rfft(x.to(wide).index_select(-1, order)).mul_(turns)
    mirrored = turned.imag[..., 1 : (length + 1) // 2].flip(-1).neg()
    return torch.cat([turned.real, mirrored], dim=-1)


@lru_cache(256)
def _cosines(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Returns :math:`\cos(\pi j / 2n)` for `j` up to :math:`4n`, a full turn."""
    with torch.inference_mode(False), torch.no_grad():
        angles = torch.arange(4 * length, dtype=torch.float64, device="cpu") * (
            math.pi / (2 * length)
        )
        return angles.cos().to(device, dtype)


@lru_cache(256)
def _turns(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""Returns :math:`c_k e^{-i \pi k / 2n}` for `k` up to :math:`n / 2`."""
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(length // 2 + 1, dtype=torch.float64, device="cpu")
        turns = torch.polar(_factors(k, length, k), k * (-math.pi / (2 * length)))
        return turns.to(device, dtype)


def _factors(k: Tensor, length: int, like: Tensor) -> Tensor:
    """Returns what makes the cosines of frequencies orthonormal."""
    factors = torch.full_like(k, math.sqrt(2 / length), dtype=like.dtype)
    return factors.masked_fill_(k == 0, math.sqrt(1 / length))
