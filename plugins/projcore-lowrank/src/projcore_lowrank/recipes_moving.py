"""Recipes whose subspaces keep moving; see `recipes`."""

from __future__ import annotations

from projcore import Optimizer
from projcore.recipe import Params, Project, Spec
from projcore_lowrank._recipe import UNCORRECTED, corrected, optimizer, recipe
from projcore_lowrank.basis import Basis
from projcore_lowrank.compensation import Compensation
from projcore_lowrank.fira import Fira
from projcore_lowrank.grassmann import GrassWalk, SubTrack
from projcore_lowrank.random_basis import RandomBasis
from projcore_lowrank.subspace import Subspace
from projcore_lowrank.switching import Switching
from projcore_lowrank.tracking import Variances

Betas = tuple[float, float]


def _recovering(
    basis: Basis, betas: Betas, eps: float, rank: float, scale: float, limit: float | None
) -> list[Spec]:
    """Returns Fira's modules with another basis, to which the moments are transported."""
    choices = {"basis": basis, "combine": Fira(scale, limit), "memory": Variances()}
    return corrected(Subspace, betas, eps, rank=rank, **choices)


@recipe({"rank": 8}, eps=UNCORRECTED)
def subtrack(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    step: float = 10.0,
    relative: bool = False,
    scale: float = 0.25,
    limit: float | None = 1.01,
    project: Project = None,
) -> Optimizer:
    """SubTrack++: Adam in a subspace that follows the gradient, and the residual as in Fira.

    The moments are transported to each new basis, second moments as variances, as in LDAdam. The
    defaults are those of the authors' script for a LLaMA of 60 million parameters. Differs from
    their code as `SubTrack` does; theirs also transports moments one step late, from a basis that
    is never updated, and multiplies second moments by one minus the second beta.

    Args:
        step: The step size along the geodesic, see `SubTrack`.
        relative: Whether the step is independent of the norm of the gradient, see `SubTrack`.

    Cost: ``s r + 2 l r``.

    References:
        Rajabi et al., 2025, https://arxiv.org/abs/2502.01586.
    """
    basis = SubTrack(period, step, relative, stagger=False)
    modules = _recovering(basis, betas, eps, rank, scale, limit)
    fixed = {"betas": betas}
    return optimizer("subtrack", params, project, rank, modules, lr, weight_decay, fixed)


@recipe({"rank": 8}, eps=UNCORRECTED)
def grasswalk(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    step: float = 0.5,
    scale: float = 0.25,
    limit: float | None = 1.01,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    """GrassWalk: Adam in a subspace on a random walk, and the residual as in Fira.

    It is `subtrack` with random directions. The paper's defaults are unknown to us; these are from
    the authors' script for SubTrack++, and ``step`` is ours.

    Args:
        step: The approximate angles between successive bases.

    Cost: ``s r + 2 l r``.

    References:
        Rajabi et al., 2025, https://arxiv.org/abs/2510.01878.
    """
    basis = GrassWalk(period, step, seed, stagger=False)
    modules = _recovering(basis, betas, eps, rank, scale, limit)
    fixed = {"betas": betas}
    return optimizer("grasswalk", params, project, rank, modules, lr, weight_decay, fixed)


@recipe({"rank": 8}, eps=UNCORRECTED)
def grassjump(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    limit: float | None = 1.01,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    """GrassJump: Adam in random orthonormal subspaces, and the residual as in Fira.

    It is `subtrack` with a new random basis at each refresh, regenerated from a seed, not stored.
    The paper's defaults are unknown to us; these are from the authors' script for SubTrack++.

    Cost: ``2 l r``.

    References:
        Rajabi et al., 2025, https://arxiv.org/abs/2510.01878.
    """
    basis = RandomBasis(period, "orthonormal", seed, stagger=False)
    modules = _recovering(basis, betas, eps, rank, scale, limit)
    fixed = {"betas": betas}
    return optimizer("grassjump", params, project, rank, modules, lr, weight_decay, fixed)


@recipe({"rank": 8}, eps=UNCORRECTED)
def alice(
    params: Params,
    lr: float = 0.02,
    betas: tuple[float, float, float] = (0.9, 0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rank: float = 256,
    leading: int | float = 0.15625,
    period: int = 200,
    scale: float = 0.3,
    residual_scale: float = 0.4,
    limit: float | None = 1.01,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    """Alice: Adam along leading eigenvectors and random directions, and the compensated residual.

    Adam has no bias correction. With a third beta of 0 it is Alice-0, which keeps no running mean
    of :math:`G G^H`. Differs from the paper as `Switching` and `Compensation` do.

    Args:
        betas: The betas of Adam; the first is also that of the mean residual norms, the third that
            of the basis.
        leading: The number of eigenvectors kept at a refresh, by default 40 of 256; a float is a
            fraction of the rank.
        scale: A factor of the update.
        residual_scale: An additional factor of the residual.

    Cost: ``s r + 2 l r + r^2 + l``.

    References:
        Gong et al., 2025, https://arxiv.org/abs/2502.07752.
    """
    adam = {"adam": {"betas": betas[:2], "eps": eps, "bias_correction": False}}
    basis = Switching(period, leading, betas[2], seed, stagger=False)
    combine = Compensation(scale, residual_scale, betas[0], limit)
    modules = [Subspace([adam], rank, basis, combine)]
    fixed = {"betas": betas[:2]}
    return optimizer("alice", params, project, rank, modules, lr, weight_decay, fixed)
