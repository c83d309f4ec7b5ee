"""Published low-rank optimizers: a basis, its refresh schedule, a state policy and inner modules.

All take a model, or parameters, named or not, or parameter groups; and ``project``, which selects
the parameters to project: a rule (see `projcore.param_groups`), several, or a mapping from rules to
their settings, such as ``{"*.attn.* ndim==2": {"rank": 64}, "ndim==2": {}}``. The default depends
on the role of each parameter (see `projcore.recipe.routed`): matrices, convolutions and stacks of
matrices, such as the experts of a mixture, matrix by matrix; `muon_adamw` and `sumo`, which
orthogonalize updates, exclude the last linear layer. Other parameters use the same modules
unprojected, or Adam if a recipe says so; so does a matrix whose shorter side is at most the rank,
since a projection would save nothing.

Weight decay multiplies the parameters before the step, as in torch; the authors' codes differ.
Costs are state elements for a matrix with sides ``s <= l``, for which Adam has ``2 s l``.
"""

from __future__ import annotations

import math
from typing import Any

from projcore import Optimizer
from projcore.recipe import LINEAR, Params, Project, Way, routed
from projcore_lowrank import published
from projcore_lowrank._matrices import Side
from projcore_lowrank._recipe import LEAST, ROOT, UNCORRECTED, beside, corrected, optimizer, recipe
from projcore_lowrank.intrinsic_subspace import IntrinsicSubspace, Plane
from projcore_lowrank.memory import Transport
from projcore_lowrank.published import Refresh
from projcore_lowrank.random_basis import SeedChain
from projcore_lowrank.recipes_moving import alice, grassjump, grasswalk, subtrack
from projcore_lowrank.singular import Randomized
from projcore_lowrank.soap_rotation import SOAPRotation, Statistics
from projcore_lowrank.subspace import Subspace
from projcore_lowrank.unproject import Residual

__all__ = [
    "alice",
    "apollo",
    "apollo_mini",
    "dct_adamw",
    "fira",
    "flora",
    "frugal",
    "galore_adafactor",
    "galore_adamw",
    "golore",
    "grassjump",
    "grasswalk",
    "intrinsic_dimension",
    "kl_soap",
    "ldadam",
    "muon_adamw",
    "soap",
    "subtrack",
    "sumo",
]

Betas = tuple[float, float]


@recipe({"rank": 8}, eps=UNCORRECTED)
def galore_adamw(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    side: Side = "std",
    refresh: Refresh = "svd",
    stagger: bool = False,
    project: Project = None,
) -> Optimizer:
    """GaLore with AdamW: Adam in the top singular subspace of each matrix's gradient.

    The defaults are those of the authors' script for a LLaMA of 60 million parameters.
    ``refresh="subspace"`` with ``stagger`` takes a tenth of the time, spread over steps.

    Cost: ``s r + 2 l r``.

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    inside = published.GaLore([adam], rank, period, scale, side, refresh, stagger)
    return optimizer("galore_adamw", params, project, rank, [inside], lr, weight_decay)


@recipe({"rank": 8}, eps=LEAST)
def galore_adafactor(
    params: Params,
    lr: float = 0.01,
    eps: float | None = 1e-15,
    beta2_decay: float = -0.8,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    project: Project = None,
) -> Optimizer:
    """GaLore with Adafactor: factored second moments of projected gradients, no first moments.

    Without relative steps, and without scaling by the parameters.

    Cost: ``s r + l + r``.

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (section 4).
    """
    adafactor = {"adafactor": {"lr": None, "eps": (eps, 1e-3), "beta2_decay": beta2_decay}}
    inside = published.GaLore([adafactor], rank, period, scale)
    return optimizer("galore_adafactor", params, project, rank, [inside], lr, weight_decay)


@recipe({"rank": 8}, eps=UNCORRECTED)
def fira(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    side: Side = "std",
    refresh: Refresh = "svd",
    stagger: bool = False,
    limit: float = 1.01,
    project: Project = None,
) -> Optimizer:
    """Fira: GaLore plus the residual, with each channel scaled as Adam scaled the subspace.

    The defaults are those of the authors' script for a LLaMA of 60 million parameters. Differs from
    their code: a residual of zero does not limit all later ones.

    Cost: ``s r + 2 l r``.

    References:
        Chen et al., 2024, https://arxiv.org/abs/2410.01623 (algorithm 1).
    """
    settings = {"period": period, "side": side, "refresh": refresh, "stagger": stagger}
    rule = {"combine": "fira", "scale": scale, "limit": limit}
    modules = corrected(published.LowRank, betas, eps, rank=rank, **settings, **rule)
    return optimizer("fira", params, project, rank, modules, lr, weight_decay, {"betas": betas})


@recipe({"rank": 0.25}, eps=UNCORRECTED, scale=ROOT)
def apollo(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 0.25,
    period: int = 200,
    scale: float = 1.0,
    limit: float | None = 1.01,
    seed: int = 0,
    chain: SeedChain = "mixed",
    project: Project = None,
) -> Optimizer:
    r"""APOLLO: the gradient, with each channel scaled as Adam scales its random projection.

    Differs from the authors' code: random numbers differ, except with ``chain="apollo"``, which
    draws on the CPU; an update of zero does not limit all later ones.

    Cost: ``2 l r``.

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (algorithm 1).
    """
    settings = {"period": period, "seed": seed, "chain": chain, "stagger": False}
    rule = {"combine": "apollo", "scale": math.sqrt(scale), "limit": limit}
    modules = corrected(published.RandomSubspace, betas, eps, rank=rank, **settings, **rule)
    return optimizer("apollo", params, project, rank, modules, lr, weight_decay, {"betas": betas})


@recipe(eps=UNCORRECTED, scale=ROOT)
def apollo_mini(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    period: int = 200,
    scale: float = 128.0,
    limit: float | None = 1.01,
    seed: int = 0,
    chain: SeedChain = "mixed",
    project: Project = None,
) -> Optimizer:
    """APOLLO-Mini: the gradient, scaled as a whole as Adam scales its rank-1 random projection.

    Differs from the authors' code as `apollo` does.

    Cost: ``2 l``.

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (section 4.2).
    """
    settings = {"period": period, "seed": seed, "chain": chain, "stagger": False}
    rule = {"combine": "apollo_mini", "scale": math.sqrt(scale), "limit": limit}
    modules = corrected(published.RandomSubspace, betas, eps, rank=1, **settings, **rule)
    return optimizer("apollo_mini", params, project, 1, modules, lr, weight_decay, {"betas": betas})


@recipe({"rank": 8, "seed": 1}, eps=UNCORRECTED)
def golore(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    """GoLore: Adam in random orthonormal subspaces, with first moments transported.

    The authors start with GaLore's subspace, and change to random ones late in training, when noise
    dominates the gradient: first `galore_adamw`, then this recipe.

    Cost: ``2 l r``.

    References:
        He et al., 2024, https://arxiv.org/abs/2410.11289 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    basis = {"kind": "orthonormal", "seed": seed, "stagger": False}
    carried = {"policy": "transport", "second": "keep"}
    inside = published.RandomSubspace([adam], rank, period, scale=scale, **basis, **carried)
    return optimizer("golore", params, project, rank, [inside], lr, weight_decay)


@recipe({"rank": 8}, eps=LEAST)
def flora(
    params: Params,
    lr: float = 1e-3,
    beta: float = 0.9,
    eps: float | None = 1e-15,
    beta2_decay: float = -0.8,
    rank: float = 128,
    period: int = 1000,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    r"""Flora: Adafactor, whose momentum is stored as a random projection.

    With Adafactor's update :math:`u` and a random :math:`A`, ``(r, s)``,
    :math:`M \leftarrow \beta M + (1 - \beta) A u`, and the update is
    :math:`(1 - \beta) u + \beta A^\top M_{before} = A^\top M + (1 - \beta) (u - A^\top A u)`.

    Each new projection increases the norm of the momentum by about :math:`\sqrt{s/r}`. Unless
    :math:`\beta^{period}` is far below :math:`\sqrt{r/s}`, it grows without bound.

    Differs from the authors' code: seeds; the default projects every matrix that a rank makes
    smaller, theirs excludes those with one side more than four times the other.

    Cost: ``l r + l + s``.

    References:
        Hao et al., 2024, https://arxiv.org/abs/2402.03293 (algorithm 2).
    """
    adafactor = {"adafactor": {"lr": None, "eps": (eps, 1e-3), "beta2_decay": beta2_decay}}
    momentum = {"ema": {"beta": beta, "debias": False}}
    rule = {"combine": "residual", "residual_scale": 1 - beta, "policy": "transport"}
    inside = published.RandomSubspace([momentum], rank, period, seed=seed, stagger=False, **rule)
    return optimizer("flora", params, project, rank, [adafactor, inside], lr, fixed={"beta": beta})


@recipe({"density": 0.1})
def frugal(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    density: float = 0.25,
    period: int = 200,
    residual_scale: float = 1.0,
    seed: int = 0,
    project: Project = None,
) -> Optimizer:
    """FRUGAL: Adam on random columns, resampled each period, and sign descent on the others.

    Args:
        density: The fraction of the columns for which Adam has state.
        period: Steps between samples, at which state is reinitialized.
        residual_scale: A factor of the learning rate for the signs.

    Cost: ``2 density m n``, and an index for each selected column.

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    chosen = {"select": "random", "seed": seed, "stagger": False}
    rule = {"combine": "sign", "residual_scale": residual_scale}
    inside = published.CoordinateSubspace([adam], density, period, **chosen, **rule)
    return optimizer("frugal", params, project, density, [inside], lr, weight_decay)


@recipe({"rank": 8}, rho="The weight of the momentum in the refresh of the subspace.")
def ldadam(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.908, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rank: float = 16,
    rho: float = 0.908,
    error_feedback: bool = True,
    project: Project = None,
) -> Optimizer:
    """LDAdam: Adam in a subspace refreshed at every step, with generalized error feedback.

    Differs from the authors' code: errors are in the state, in a tensor of the parameter's size,
    not in ``.grad``, where clipping and clearing gradients would corrupt them.

    Cost: ``s r + 2 l r``, and ``s l`` for the errors.

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    inside = published.LDAdamSubspace([adam], rank, rho, error_feedback=error_feedback)
    return optimizer("ldadam", params, project, rank, [inside], lr, weight_decay)


@recipe({"rank": 8, "error_feedback": True})
def dct_adamw(
    params: Params,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    rank: float = 128,
    period: int = 1,
    error_feedback: bool = False,
    project: Project = None,
) -> Optimizer:
    """DCT-AdamW: Adam on the frequencies of each matrix with the largest norm, in each step.

    Cost: ``2 l r`` and `r` indices, and ``s l`` with error feedback.

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (algorithm 2).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    inside = published.DCTSelect([adam], rank, period, stagger=False, error_feedback=error_feedback)
    return optimizer("dct_adamw", params, project, rank, [inside], lr, weight_decay)


@recipe({"rank": 8}, betas="The betas of Adam, for parameters that are not projected.")
def sumo(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 1.0,
    limit: float = 1.1,
    betas: Betas = (0.9, 0.999),
    project: Project = None,
) -> Optimizer:
    r"""SUMO: momentum in a low-rank subspace, exactly orthogonalized, plus the residual.

    With :math:`M \leftarrow \mu C M + Q^\top G`, where :math:`C` transports it to a new basis, and
    its polar factor :math:`O`, whose norm has limited growth, the update is
    :math:`G - Q (Q^\top G - 0.2 \sqrt{\max(m, n)}\, \alpha O)`. Parameters that are not projected
    use Adam.

    Differs from the authors' code: that uses Nesterov momentum, does not transport it, and takes
    four times the learning rate; this is the paper's algorithm with the code's factor.

    Args:
        scale: :math:`\alpha`, a factor of the orthogonalized momentum.

    Cost: ``s r + l r``.

    References:
        Refael et al., 2025, https://arxiv.org/abs/2505.24749 (algorithm 1; section 3.2 for the
        limit and the factor).
    """
    orthogonal = {"orthogonalize": {"method": "svd", "folding": "last2"}}
    modules = [{"heavy_ball": momentum}, orthogonal, {"norm_growth_limiter": limit}]
    basis, combine = Randomized(period, stagger=False), Residual(scale, match_rms=True)
    inside = Subspace(modules, rank, basis, combine, Transport())
    ways = inside, {"adam": {"betas": betas}}
    return beside("sumo", params, project, *ways, lr, weight_decay, rank, real=True)


SOAP = {
    "betas": "The betas of Adam; the second is also the decay of the preconditioner's averages.",
    "eps": UNCORRECTED,
    "period": "Steps between refreshes of the bases.",
    "max_side": "The length of the longest dimension to rotate.",
    "statistics": "The averages of the preconditioner, see `SOAPRotation`.",
    "project": "The parameters to rotate; by default, all with two dimensions or more. Parameters\n"
    "        that a rule excludes use Adam alone, from the first step on.",
}


@recipe({}, **SOAP)
def soap(
    params: Params,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    period: int = 10,
    max_side: int = 10_000,
    project: Project = "*",
    statistics: Statistics = "shampoo",
) -> Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    Differs from the authors' code: weight decay is also applied in the first step, which has no
    other update.

    Cost: ``2 m n + 2 m^2 + 2 n^2`` for a matrix of shape ``(m, n)``, and ``m + n`` indices.

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    how: dict[str, Any] = {"max_side": max_side, "skip_first": True, "statistics": statistics}
    inside = SOAPRotation([adam], period, betas[1], **how)
    # Vectors are not rotated, but also skip the first step.
    ways = inside, inside if project == "*" else adam
    name = "soap" if statistics == "shampoo" else "kl_soap"
    return beside(name, params, project, *ways, lr, weight_decay, default=LINEAR)


@recipe({}, **SOAP)
def kl_soap(
    params: Params,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    period: int = 10,
    max_side: int = 10_000,
    project: Project = "*",
) -> Optimizer:
    """KL-SOAP: SOAP whose preconditioner averages gradients whitened along all other dimensions.

    Differs from the authors' code: defaults are SOAP's; Adam has bias correction, as in SOAP; and
    weight decay is also applied in the first step, which has no other update.

    Cost: ``2 m n + 2 m^2 + 2 n^2`` for a matrix of shape ``(m, n)``, and ``m + n`` eigenvalues.

    References:
        Lin et al., 2025, https://arxiv.org/abs/2509.03378. See `SOAPRotation` for the formulas.
    """
    return soap(params, lr, betas, eps, weight_decay, period, max_side, project, "kl")


@recipe()
def muon_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    """Muon on matrices, scaled to match Adam's learning rates, and Adam on other parameters.

    Args:
        lr: The learning rate of both.
        weight_decay: The decoupled weight decay of both.
        project: The parameters that use Muon; by default, hidden layers.

    Cost: ``m n``, half of Adam's.

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; Liu et al., 2025,
        https://arxiv.org/abs/2502.16982 (section 2.2, the scale).
    """
    muon = {"momentum": momentum, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    ways = {"muon": {**muon, "flatten": True}}, {"adam": {"betas": betas}}
    return beside("muon_adamw", params, project, *ways, lr, weight_decay, real=True)


@recipe({"dimension": 100})
def intrinsic_dimension(
    params: Params,
    dimension: int = 1000,
    lr: float = 1e-2,
    kind: Plane = "fastfood",
    seed: int = 0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam on few coordinates of the whole model, along random directions from its initial point.

    Cost: twice the dimension; each step multiplies by the directions and their transpose.

    References:
        Li et al., 2018, https://arxiv.org/abs/1804.08838; Aghajanyan et al., 2021,
        https://arxiv.org/abs/2012.13255.
    """
    inside = IntrinsicSubspace([{"adam": {"betas": betas, "eps": eps}}], dimension, kind, seed)
    return routed("intrinsic_dimension", params, [Way([inside, {"lr": lr}])])
