"""Bases of the top singular vectors: exact, and cheaper approximate ones."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings
from projcore.ops import wide
from projcore_lowrank._subspace import Method, dominant
from projcore_lowrank.basis import Basis, End, Nonfinite, Source


class SVD(Basis):
    r"""The left singular vectors of the `r` largest singular values, exactly.

    .. math:: G = U \Sigma V^H, \qquad P = (u_1, \dots, u_r),

    or the right ones, if the matrix is compressed from the right. For a complex matrix, the phase
    of each vector is chosen so that its largest entry is real and positive.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.

    Cost: an SVD of each matrix, O(mn min(m, n)), every ``period`` steps.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> from projcore.projections import Subspace
        >>> model = torch.nn.Linear(30, 20)
        >>> subspace = Subspace([Adam()], rank=4, basis=SVD(period=100, stagger=False))
        >>> optimizer = Optimizer(model.parameters(), subspace, LR(1e-2))

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2).
    """

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        if end == "left":
            return super().learn(end, rank, matrix, state, settings)
        # Not of the transpose: its vectors have other signs than those of the authors' code, and
        # state that is kept depends on the signs.
        rows = torch.linalg.svd(wide(matrix.mH), full_matrices=False).Vh
        # A slice would keep the whole tensor alive.
        basis = rows[..., :rank, :].mH.clone(memory_format=torch.contiguous_format)
        return {end: with_fixed_phases(basis).to(matrix.dtype)}

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        return with_fixed_phases(dominant(matrix, rank, "svd"))


class Gram(Basis):
    r"""Eigenvectors of :math:`G G^H` or :math:`G^H G`, whichever is smaller: a cheaper `SVD`.

    Directions of singular values below :math:`\sqrt\epsilon \sigma_1` are inaccurate.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.

    Cost: O(mns + s³), with s = min(m, n), every ``period`` steps.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=Gram(period=50)))
        subspace([adam()], rank=4, basis=gram(period=50))
    """

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        return with_fixed_phases(dominant(matrix, rank, "gram"))


class Randomized(Basis):
    r"""An orthonormal basis of :math:`G G^H \Omega`, with `r` Gaussian columns :math:`\Omega`.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.

    Cost: about :math:`4mnr + 4mr^2` operations every ``period`` steps.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=Randomized()))
        subspace([adam()], rank=4, basis=randomized())

    References:
        Halko, Martinsson, Tropp, 2011, https://arxiv.org/abs/0909.4061 (algorithm 4.4).
    """

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        return dominant(matrix, rank, "randomized", seed=seed)


class SubspaceIteration(Basis):
    r"""A basis of :math:`G G^H P_0`, with the current basis :math:`P_0`, initially random columns.

    On a CPU, a matrix with more than `r + 32` and at most `4r` columns is replaced by random sums
    of its columns, unless these miss more than about 0.005 of the squared norm.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        full: Whether to use all columns at once, which is faster if few singular values dominate.
        once: Whether to compute the basis in the first step only, whatever the period.

    Cost: about :math:`4mnr + 4mr^2` operations every ``period`` steps.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=SubspaceIteration(period=10, stagger=False)))
        subspace([adam()], rank=4, basis=subspace_iteration(period=10, stagger=False))

    References:
        Liang et al., 2024, https://arxiv.org/abs/2408.12857 (online subspace descent).
    """

    def __init__(
        self,
        period: int = 200,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
        full: bool = False,
        once: bool = False,
    ) -> None:
        self.full = full
        self.periodic = not once
        super().__init__(period, stagger, source, nonfinite)

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        method: Method = "subspace_whole" if self.full else "subspace"
        return dominant(matrix, rank, method, start, seed)


def with_fixed_phases(basis: Tensor) -> Tensor:
    """Fixes the phase of each complex column so that its largest entry is real and positive.

    Decompositions do not determine the phases, which jump at rounding errors; modules that treat
    real and imaginary parts separately, such as Adam, depend on them.
    """
    if not basis.is_complex():
        return basis
    largest = basis.gather(-2, basis.abs().argmax(-2, keepdim=True))
    return basis * largest.conj().sgn()
