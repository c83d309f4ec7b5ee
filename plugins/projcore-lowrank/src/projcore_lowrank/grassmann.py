"""Bases that move along geodesics of the Grassmannian, along a gradient or at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projcore import require
from projcore.ops import wide
from projcore_lowrank._seeded import gaussian, mix
from projcore_lowrank._subspace import dominant, orthonormalize, resized, size_of
from projcore_lowrank.basis import Basis, Nonfinite, Source
from projcore_lowrank.random_basis import require_seed
from projcore_lowrank.singular import with_fixed_phases


class SubTrack(Basis):
    r"""Moves the basis along a geodesic that reduces the projection error, as in SubTrack++.

    With :math:`A = P^H G`, the gradient of :math:`\lVert G - P A \rVert^2` is the tangent
    :math:`-D`. The basis rotates by the leading singular triplets of :math:`D`, by default one:

    .. math::
        D = 2 (G - P A) A^H \approx U \Sigma V^H, \qquad
        P \leftarrow P V \cos(\Theta) V^H + U \sin(\Theta) V^H + P (I - V V^H)

    by the angles :math:`\Theta = \min(\eta \Sigma, \pi / 2)`. The first basis is that of `SVD`.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        step: :math:`\eta`, above 0. :math:`\Sigma` scales with :math:`\lVert G \rVert^2`.
        relative: Whether to divide :math:`D` by :math:`\lVert G \rVert^2`, so that angles do not
            depend on the norm of the gradient; a step of 1 is then large.
        directions: The number of triplets, at least 1, capped at the rank.

    Raises:
        ArgumentError: If an argument is out of range or a choice unknown.

    Cost: two products of ``2 s l r`` operations and about ``10 s r^2`` every ``period`` steps.

    Differs from the authors' code: angles are at most a right angle, where theirs wrap around; the
    basis of a matrix with :math:`m \ge n` moves, too, where theirs multiplies the tangent by zero.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], 4, SubTrack(period=100), "fira()", "variances()"))
        subspace([adam()], rank=4, basis=subtrack(period=100), combine=fira(), memory=variances())

    References:
        Rajabi et al., 2025, https://arxiv.org/abs/2502.01586. Geodesics: Edelman, Arias, Smith,
        1998, https://arxiv.org/abs/physics/9806030 (theorem 2.3).
    """

    def __init__(
        self,
        period: int = 200,
        step: float = 10.0,
        relative: bool = False,
        directions: int = 1,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require(self, "step", step, above=0)
        require(self, "directions", directions, minimum=1)
        self.step = step
        self.relative = relative
        self.directions = directions
        super().__init__(period, stagger, source, nonfinite)

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        if start is None:
            return with_fixed_phases(dominant(matrix, rank, "svd"))
        g = wide(matrix)
        basis = resized(start.to(g.dtype), rank, seed)
        size = size_of(g)
        g = g / size  # prevents overflow and underflow of squares
        inside = basis.mH @ g
        tangent = g @ inside.mH - basis @ (inside @ inside.mH)
        whole = torch.linalg.matrix_norm(g, keepdim=True).square()
        step = 2 * self.step * (1 / whole if self.relative else size.square())
        return moved(basis, tangent, step, min(self.directions, rank))


class GrassWalk(Basis):
    r"""Moves the basis along a geodesic in a random direction: a random walk, as in GrassWalk.

    .. math::
        D = (I - P P^H) Z = U \Sigma V^H, \qquad Z_{ij} \sim N(0, 1/m), \qquad
        P \leftarrow P V \cos(\eta \Sigma) V^H + U \sin(\eta \Sigma) V^H

    All principal angles between two bases are about :math:`\eta`, as singular values of :math:`D`
    are near 1. The first basis is that of `SVD`. Tensors that are refreshed in the same step share
    their random numbers. GrassJump draws a new basis instead of a step:
    ``random_basis(kind="orthonormal")``.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        step: :math:`\eta`, above 0.
        seed: The seed of the directions, at least 0.

    Raises:
        ArgumentError: If an argument is out of range or a choice unknown.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: ``s r`` random numbers and about ``14 s r^2`` operations every ``period`` steps.

    Differs from the paper, to our knowledge: the direction is projected to the tangent space,
    without which the result is not orthonormal; the scale of :math:`Z` and the default of
    :math:`\eta` are ours.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], 4, GrassWalk(period=100), "fira()", "variances()"))
        subspace([adam()], rank=4, basis=grasswalk(period=100), combine=fira(), memory=variances())

    References:
        Rajabi et al., 2025, https://arxiv.org/abs/2510.01878.
    """

    def __init__(
        self,
        period: int = 200,
        step: float = 0.5,
        seed: int = 0,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require(self, "step", step, above=0)
        require_seed(self, seed)
        self.step = step
        self.seed = seed
        super().__init__(period, stagger, source, nonfinite)

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        if start is None:
            return with_fixed_phases(dominant(matrix, rank, "svd"))
        basis = resized(wide(start), rank, seed)
        length = basis.shape[-2]
        drawn = gaussian(mix(self.seed, seed), (length, rank), basis.dtype, basis.device)
        drawn = drawn * length**-0.5
        step = torch.full((), self.step, dtype=basis.dtype.to_real(), device=basis.device)
        return moved(basis, drawn - basis @ (basis.mH @ drawn), step, rank)


def moved(basis: Tensor, tangent: Tensor, step: Tensor, directions: int) -> Tensor:
    r"""Returns a basis moved along the geodesic of a tangent, by right angles at most.

    :math:`P + (P V (\cos\Theta - I) + U \sin\Theta) V^H`, with the leading singular triplets
    :math:`U, \Sigma, V` of the tangent, and :math:`\Theta = \min(\eta\Sigma, \pi / 2)`.

    Args:
        basis: :math:`P`, shape ``(..., m, r)``.
        tangent: Orthogonal to all of :math:`P`, of the same shape.
        step: :math:`\eta`, shape ``(..., 1, 1)`` or ``()``.
        directions: The number of triplets.

    Returns:
        Orthonormal columns, of the same shape; those of :math:`P` if the tangent is zero.
    """
    vectors = torch.linalg.eigh(tangent.mH @ tangent).eigenvectors[..., -directions:]
    along = tangent @ vectors
    sizes = torch.linalg.vector_norm(along, dim=-2, keepdim=True)
    angles = (step * sizes).clamp(max=math.pi / 2)
    along = along / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    turned = basis @ vectors * (angles.cos() - 1) + along * angles.sin()
    return orthonormalize(basis + turned @ vectors.mH).contiguous()
