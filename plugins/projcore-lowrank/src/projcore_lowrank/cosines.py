"""Bases of cosines: the frequencies with the largest norm of each matrix."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from projcore import Entries, Settings
from projcore.ops import require_choice
from projcore_lowrank.basis import End, Nonfinite, Source, ends_of
from projcore_lowrank.coordinates import Chosen, largest

Norm = Literal[1, 2]
WORKSPACE = 1 << 28  # the bytes that are transformed at a time, besides two to three times as many


class Cosines(Chosen):
    r"""Selected frequencies of each matrix, along the side that is compressed.

    The basis :math:`P` consists of `r` columns of the orthonormal DCT matrix of this side,

    .. math:: Q_{ik} = c_k \cos\frac{\pi (2i + 1) k}{2s}, \qquad
        c_0 = \sqrt{1/s}, \quad c_k = \sqrt{2/s},

    those for which the rows of :math:`Q^\top G` have the largest norm; ties select the lowest. The
    state holds only the indices. The matrices of a batch share frequencies. Transported state
    inside is kept for frequencies that remain selected, and is zero for new ones.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        norm: The norm for the selection: 1, the sum of absolute values, or 2.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.

    Cost: 8 bytes for each index; the selection is a cosine transform, O(s l log s) for a matrix
    with sides ``s <= l``. A table of ``4 s`` cosines is cached.

    Differs from the authors' code: the basis has DCT-II vectors on both sides; theirs has DCT-III
    vectors on one side if it transforms by a product.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=Cosines(norm=2), error_feedback=True))
        subspace([adam()], rank=4, basis=cosines(norm=2), error_feedback=True)

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (DCT-AdamW); the transform:
        Makhoul, 1980, https://doi.org/10.1109/TASSP.1980.1163351.
    """

    traceable = False  # the tables are kept in caches

    def __init__(
        self,
        period: int = 1,
        norm: Norm = 1,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require_choice(self, "norm", norm, Norm)
        self.norm = norm
        super().__init__(period, stagger, source, nonfinite)

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        rows = matrix.movedim(-2, -1)  # usually contiguous along the transformed dimension
        count = max(1, WORKSPACE * rows.shape[-2] // max(1, rows.nbytes))
        scores = torch.stack([self._scores(part) for part in rows.split(count, -2)]).sum(0)
        if state[end].ndim == 1:  # the matrices of one tensor share their frequencies
            scores = scores.reshape(-1, scores.shape[-1]).sum(0)
        return {end: largest(scores, rank)}

    def _scores(self, rows: Tensor) -> Tensor:
        """Returns the sums over rows of the absolute values of frequencies, or of their squares."""
        if rows.is_complex():
            sizes = torch.complex(cosines_of(rows.real), cosines_of(rows.imag)).abs()
        else:
            sizes = cosines_of(rows).abs_()
        return (sizes.square_() if self.norm == 2 else sizes).sum(-2)

    def read(self, batches: list[list[Entries]], like: list[Tensor]) -> list[Entries]:
        return [
            {end: self.matrix(state, end, tensor) for end in ends_of(state)}
            for state, tensor in zip(map(self.together, batches), like, strict=True)
        ]

    def matrix(self, state: Entries, end: End, like: Tensor) -> Tensor:
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

    With :math:`V` the Fourier transform of the entries in the order 0, 2, 4, ..., 5, 3, 1, and
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
    """Returns the factors that make the cosines of frequencies orthonormal."""
    factors = torch.full_like(k, math.sqrt(2 / length), dtype=like.dtype)
    return factors.masked_fill_(k == 0, math.sqrt(1 / length))
