"""Published optimizers, each a basis, a rule to refresh it, what becomes of memory, and an inside.

All take a model, or parameters, named or not, or groups of them; and ``project``, which says what
is projected: a rule (see `projcore.param_groups`), several, or a mapping from rules to settings of
their own, such as ``{"*.attn.* ndim==2": {"rank": 64}, "ndim==2": {}}``. By default that goes by
the role of each parameter (see `projcore.inspect_model`): matrices, convolutions and stacks of
matrices, as the experts of a mixture are, but no embeddings, output layers, depthwise convolutions,
and nothing that is no linear map; `muon_adamw` and `sumo`, which make updates orthogonal, leave out
the last linear layer, too. Given a model, its layers say what is what; given parameters, names do.

A stack is projected matrix by matrix. What is not projected goes through the same modules as it is,
or where a recipe says so through Adam; so does a matrix whose shorter side is not greater than the
rank, since nothing would be saved. Frozen parameters are left out before all that.
`Optimizer.describe` shows which is which before the first step, and why; the logger ``projcore``
tells it once, at the level INFO. Groups that are added later are split by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from projcore import Optimizer
from projcore_lowrank._groups import (
    HIDDEN,
    LINEAR,
    Params,
    Project,
    Split,
    trainable,
    unnamed,
)

__all__ = [
    "apollo",
    "apollo_mini",
    "dct_adamw",
    "fira",
    "flora",
    "frugal",
    "galore_adafactor",
    "galore_adamw",
    "golore",
    "intrinsic_dimension",
    "ldadam",
    "muon_adamw",
    "soap",
    "sumo",
]

Betas = tuple[float, float]
Spec = Mapping[str, Any]


def _optimizer(
    recipe: str,
    params: Params,
    project: Project,
    rank: float | None,
    *modules: Spec,
    fixed: Spec | None = None,
) -> Optimizer:
    """Returns the optimizer of these modules; what is not projected is in groups of no rank.

    What is fixed has one value for all parameters, because another module was made with it. Where
    both have it as a setting, its names in groups are qualified by position.
    """
    split = Split(recipe, params, project, {"rank": rank}, {"rank": None}, fixed=fixed)
    return _finished(split, list(modules))


def _routed(
    recipe: str,
    params: Params,
    project: Project,
    inside: Sequence[Spec],
    outside: Sequence[Spec],
    *modules: Spec,
    rank: float | None = None,
    default: str = LINEAR,
) -> Optimizer:
    """Returns an optimizer that runs other modules on what is not projected."""
    settings = {} if rank is None else {"rank": rank}
    routed = inside is not outside
    left = {"route": 1} if routed else {}
    split = Split(recipe, params, project, settings, left, default)
    split.complete = not routed or split.count < len(split.groups)
    if not routed or not split.complete:
        return _finished(split, [*inside, *modules])
    routes = {"ndim>=2": list(inside), "*": list(outside)}
    return _finished(split, [{"route": {"routes": routes}}, *modules])


def _finished(split: Split, modules: list[Spec]) -> Optimizer:
    optimizer = Optimizer(split.groups, modules)
    optimizer.regroup = split.late
    return optimizer


def galore_adamw(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    side: str = "std",
    refresh: str = "svd",
    stagger: bool = False,
    project: Project = None,
) -> Optimizer:
    """GaLore with AdamW: Adam in the top singular subspace of each matrix's gradient.

    The defaults are those of the authors' script for a LLaMA of 60 million parameters. ``refresh``
    may be ``"subspace"``, with ``stagger``, which takes a tenth of the time, spread over steps.

    Differs from the authors' code: weight decay multiplies the parameters before the step, as in
    torch, not after it. A square matrix is compressed from the right, as there.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        rank: Of the subspace.
        period: Steps between refreshes.
        scale: What the projected update is multiplied by.
        side: As of `GaLore`; likewise ``refresh`` and ``stagger``.
        refresh: How the basis is made.
        stagger: Whether refreshes are spread.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``s r + 2 l r`` numbers for a matrix of sides ``s <= l``; Adam's is ``2 s l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = galore_adamw(model, rank=8)

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    galore = {"period": period, "scale": scale, "side": side, "refresh": refresh}
    return _optimizer(
        "galore_adamw",
        params,
        project,
        rank,
        {"galore": {"modules": [adam], "rank": rank, **galore, "stagger": stagger}},
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


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
    """GaLore with Adafactor: factored second moments of the projected gradients, and no first.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate; there are no relative steps, and no scaling by the parameters.
        eps: The least root of a second moment.
        beta2_decay: The power of the step count that is 1 less the decay.
        weight_decay: Decoupled.
        rank: Of the subspace.
        period: Steps between refreshes.
        scale: What the projected update is multiplied by.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``s r + l + r`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = galore_adafactor(model, rank=8)

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (section 4).
    """
    adafactor = {"adafactor": {"lr": None, "eps": (eps, 1e-3), "beta2_decay": beta2_decay}}
    galore = {"modules": [adafactor], "rank": rank, "period": period, "scale": scale}
    return _optimizer(
        "galore_adafactor",
        params,
        project,
        rank,
        {"galore": galore},
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


def fira(
    params: Params,
    lr: float = 0.01,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    side: str = "std",
    refresh: str = "svd",
    stagger: bool = False,
    limit: float = 1.01,
    project: Project = None,
) -> Optimizer:
    """Fira: GaLore, and the residual scaled channel by channel as Adam scaled the subspace.

    The defaults are those of the authors' script for a LLaMA of 60 million parameters. Differs from
    their code: after a step of zeros the residual is not limited to almost nothing for good; weight
    decay comes before the step.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam, and of the correction behind it, so no scheduler finds and cycles it.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        rank: Of the subspace.
        period: Steps between refreshes.
        scale: What the projected update is multiplied by.
        side: As of `LowRank`; likewise ``refresh`` and ``stagger``.
        refresh: How the basis is made.
        stagger: Whether refreshes are spread.
        limit: The most by which the norm of the scaled residual grows in a step.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``s r + 2 l r`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = fira(model, rank=8)

    References:
        Chen et al., 2024, https://arxiv.org/abs/2410.01623 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "bias_correction": False}}
    settings = {"period": period, "scale": scale, "side": side, "refresh": refresh}
    fira = {"combine": "fira", "limit": limit, "stagger": stagger}
    return _optimizer(
        "fira",
        params,
        project,
        rank,
        {"low_rank": {"modules": [adam], "rank": rank, **settings, **fira}},
        {"bias_correction": {"betas": betas}},
        {"weight_decay": weight_decay},
        {"lr": lr},
        fixed={"betas": betas},
    )


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
    chain: str = "mixed",
    project: Project = None,
) -> Optimizer:
    r"""APOLLO: the gradient, scaled channel by channel as Adam scales a random projection of it.

    Differs from the authors' code: random numbers are others unless ``chain`` says otherwise, and
    then come from the CPU; after a step of zeros the update is not limited to almost nothing
    for good; weight decay comes first.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam, and of the correction behind it, so no scheduler finds and cycles it.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        rank: Of the projection: a number, or as a float a part of the shorter side.
        period: Steps between new projections.
        scale: The update is multiplied by its root, as in the authors' code.
        limit: The most by which the norm of the update grows in a step; None for no limit.
        seed: Of the projections.
        chain: How seeds follow from it: as of `RandomSubspace`.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``2 l r`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = apollo(model, rank=0.25)

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (algorithm 1).
    """
    subspace = {"rank": rank, "period": period, "seed": seed, "chain": chain}
    rule = {"combine": "apollo", "limit": limit}
    subspace = {**subspace, **rule, "scale": math.sqrt(scale), "stagger": False}
    return _apollo("apollo", params, project, lr, betas, eps, weight_decay, subspace)


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
    chain: str = "mixed",
    project: Project = None,
) -> Optimizer:
    """APOLLO-Mini: the gradient, scaled as a whole as Adam scales one random projection of it.

    Differs from the authors' code as `apollo` does. Its memory is twice the longer side.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam, and of the correction behind it, so no scheduler finds and cycles it.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        period: Steps between new projections.
        scale: The update is multiplied by its root, as in the authors' code.
        limit: The most by which the norm of the update grows in a step; None for no limit.
        seed: Of the projections.
        chain: How seeds follow from it: as of `RandomSubspace`.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``2 l`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = apollo_mini(model)

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (section 4.2).
    """
    subspace = {"rank": 1, "period": period, "seed": seed, "chain": chain}
    rule = {"combine": "apollo_mini", "limit": limit}
    subspace = {**subspace, **rule, "scale": math.sqrt(scale), "stagger": False}
    return _apollo("apollo_mini", params, project, lr, betas, eps, weight_decay, subspace)


def _apollo(
    recipe: str,
    params: Params,
    project: Project,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
    subspace: Spec,
) -> Optimizer:
    adam = {"adam": {"betas": betas, "eps": eps, "bias_correction": False}}
    return _optimizer(
        recipe,
        params,
        project,
        subspace["rank"],
        {"random_subspace": {"modules": [adam], **subspace}},
        {"bias_correction": {"betas": betas}},
        {"weight_decay": weight_decay},
        {"lr": lr},
        fixed={"betas": betas},
    )


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
    """GoLore: Adam in a random orthonormal subspace, the first moment carried to the next one.

    The authors begin with GaLore's subspace, and change to this late in training, when noise
    outweighs the gradient: that is `galore_adamw` first, and then this.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        rank: Of the subspace.
        period: Steps between new subspaces.
        scale: What the projected update is multiplied by.
        seed: Of the subspaces.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``2 l r`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = golore(model, rank=8, seed=1)

    References:
        He et al., 2024, https://arxiv.org/abs/2410.11289 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    subspace = {"rank": rank, "period": period, "scale": scale, "seed": seed}
    memory = {"policy": "transport", "second": "keep", "stagger": False}
    return _optimizer(
        "golore",
        params,
        project,
        rank,
        {"random_subspace": {"modules": [adam], "kind": "orthonormal", **subspace, **memory}},
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


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
    r"""Flora: Adafactor, whose momentum is kept as a random projection.

    With :math:`u` what Adafactor makes of the gradient and :math:`A` random, ``(r, s)``,
    :math:`M \leftarrow \beta M + (1 - \beta) A u`, and the update is
    :math:`(1 - \beta) u + \beta A^\top M_{before} = A^\top M + (1 - \beta) (u - A^\top A u)`.

    Each new projection makes the momentum longer, by about :math:`\sqrt{s/r}`. Where
    :math:`\beta^{period}` is not far less than :math:`\sqrt{r/s}`, it grows without end.

    Differs from the authors' code: seeds; by default every matrix is projected that a rank makes
    smaller, theirs leaves out those with one side more than four times the other.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        beta: Of the momentum.
        eps: The least root of a second moment.
        beta2_decay: The power of the step count that is 1 less the decay.
        rank: Of the projection.
        period: Steps between new projections.
        seed: Of the projections.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``l r + l + s`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = flora(model, rank=8)

    References:
        Hao et al., 2024, https://arxiv.org/abs/2402.03293 (algorithm 2).
    """
    momentum = {"ema": {"beta": beta, "debias": False}}
    subspace = {"rank": rank, "period": period, "seed": seed, "policy": "transport"}
    raw = {"combine": "residual", "residual_scale": 1 - beta, "stagger": False}
    return _optimizer(
        "flora",
        params,
        project,
        rank,
        {"adafactor": {"lr": None, "eps": (eps, 1e-3), "beta2_decay": beta2_decay}},
        {"random_subspace": {"modules": [momentum], **subspace, **raw}},
        {"lr": lr},
        fixed={"beta": beta},
    )


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
    """FRUGAL: Adam on some of the columns, drawn anew each period, and signs on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam.
        weight_decay: Decoupled.
        density: The part of the columns that Adam has memory for.
        period: Steps between draws, at which memory begins anew.
        residual_scale: What the learning rate is multiplied by for the signs.
        seed: Of the draws.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``2 density m n`` numbers for a matrix, and an index for each column chosen.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = frugal(model, density=0.1)

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    subspace = {"rank": density, "period": period, "seed": seed, "stagger": False}
    rest = {"policy": "reset", "combine": "sign", "residual_scale": residual_scale}
    return _optimizer(
        "frugal",
        params,
        project,
        density,
        {"coordinate_subspace": {"modules": [adam], "select": "random", **subspace, **rest}},
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


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
    """LDAdam: Adam in a subspace that turns a little each step, with generalized error feedback.

    Differs from the authors' code: what is left out is kept in memory of its own, of the
    parameter's size, not in ``.grad``, where clipping and clearing gradients would spoil it.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam.
        weight_decay: Decoupled.
        rank: Of the subspace.
        rho: How much of the momentum there is in what the subspace is learnt from.
        error_feedback: Whether what is left out is added to the next gradient.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``s r + 2 l r`` numbers for a matrix of sides ``s <= l``, and ``s l`` for what
    is left out.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = ldadam(model, rank=8)

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    subspace = {"rank": rank, "rho": rho, "inner_betas": betas, "error_feedback": error_feedback}
    return _optimizer(
        "ldadam",
        params,
        project,
        rank,
        {"ldadam_subspace": {"modules": [adam], **subspace}},
        {"weight_decay": weight_decay},
        {"lr": lr},
        fixed={"betas": betas},
    )


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
    """DCT-AdamW: Adam on the frequencies of each matrix that weigh most, chosen anew each step.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam.
        weight_decay: Decoupled.
        rank: How many frequencies.
        period: Steps between choices.
        error_feedback: Whether what is left out is added to the next gradient.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``2 l r`` numbers and `r` indices for a matrix of sides ``s <= l``, and ``s l``
    numbers with error feedback.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = dct_adamw(model, rank=8, error_feedback=True)

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (algorithm 2).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    subspace = {"rank": rank, "period": period, "stagger": False}
    return _optimizer(
        "dct_adamw",
        params,
        project,
        rank,
        {"dct_select": {"modules": [adam], **subspace, "error_feedback": error_feedback}},
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


def sumo(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    rank: float = 128,
    period: int = 200,
    scale: float = 0.25,
    betas: Betas = (0.9, 0.999),
    project: Project = None,
) -> Optimizer:
    """SUMO: momentum in a low-rank subspace, made exactly orthogonal; Adam for what has no matrix.

    The authors' defaults could not be verified: those here are GaLore's, and Muon's momentum.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        momentum: Of the projected gradients.
        weight_decay: Decoupled.
        rank: Of the subspace.
        period: Steps between refreshes, at which the momentum is carried over.
        scale: What the projected update is multiplied by.
        betas: Of Adam, for what is not projected.
        project: What is projected.

    Raises:
        ArgumentError: If nothing would be projected, or a setting is out of range.

    Cost: memory of ``s r + l r`` numbers for a matrix of sides ``s <= l``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = sumo(model, rank=8)

    References:
        Refael et al., 2025, https://arxiv.org/abs/2505.24749 (algorithm 1).
    """
    inside = [
        {"heavy_ball": {"momentum": momentum}},
        {"orthogonalize": {"method": "svd", "folding": "last2"}},
    ]
    subspace = {"rank": rank, "period": period, "scale": scale}
    memory = {"refresh": "randomized", "policy": "transport", "stagger": False}
    return _routed(
        "sumo",
        params,
        project,
        [{"low_rank": {"modules": inside, **subspace, **memory}}],
        [{"adam": {"betas": betas}}],
        {"weight_decay": weight_decay},
        {"lr": lr},
        rank=rank,
        default=HIDDEN,
    )


def soap(
    params: Params,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    period: int = 10,
    max_side: int = 10_000,
    project: Project = "*",
) -> Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    Differs from the authors' code: weight decay multiplies the parameters before the step, and in
    the first step, too, in which nothing else moves them.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate.
        betas: Of Adam; the second is the decay of the preconditioner's averages, too.
        eps: Of Adam, beside the root of the uncorrected second moment.
        weight_decay: Decoupled.
        period: Steps between changes of the bases.
        max_side: The longest side that is rotated.
        project: What is rotated; by default, all that has two dimensions or more. What others
            leave out has Adam alone, from the first step on.

    Raises:
        ArgumentError: If nothing would be rotated, or a setting is out of range.

    Cost: memory of ``2 m n + 2 m^2 + 2 n^2`` numbers for a matrix, and ``m + n`` indices.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = soap(model)

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3).
    """
    adam = {"adam": {"betas": betas, "eps": eps, "eps_mode": "hat"}}
    rotation = {"period": period, "beta": betas[1], "max_side": max_side, "skip_first": True}
    inside = [{"soap_rotation": {"modules": [adam], **rotation}}]
    # Vectors pass through the rotation, and wait for the second step, as all else there does.
    outside = inside if project == "*" else [adam]
    return _routed(
        "soap",
        params,
        project,
        inside,
        outside,
        {"weight_decay": weight_decay},
        {"lr": lr},
    )


def muon_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    """Muon on matrices, scaled so that Adam's learning rates suit it, and Adam on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        momentum: Of Muon.
        weight_decay: Decoupled, of both.
        betas: Of Adam.
        project: What Muon is for; by default, hidden layers.

    Raises:
        ArgumentError: If Muon would be for nothing, or a setting is out of range.

    Cost: memory of ``m n`` numbers for a matrix, half of Adam's.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = muon_adamw(model)

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; Liu et al., 2025,
        https://arxiv.org/abs/2502.16982 (section 2.2, the scale).
    """
    orthogonal = {"momentum": momentum, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return _routed(
        "muon_adamw",
        params,
        project,
        [{"muon": {**orthogonal, "flatten": True}}],
        [{"adam": {"betas": betas}}],
        {"weight_decay": weight_decay},
        {"lr": lr},
        default=HIDDEN,
    )


def intrinsic_dimension(
    params: Params,
    dimension: int = 1000,
    lr: float = 1e-2,
    kind: str = "fastfood",
    seed: int = 0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam on few coordinates of the whole model, along random directions through where it began.

    Args:
        params: A model, parameters, or groups.
        dimension: How many coordinates.
        lr: Learning rate.
        kind: How the directions are made, as of `IntrinsicDimension`.
        seed: Of the directions.
        betas: Of Adam.
        eps: Of Adam.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: memory of twice the dimension, and a product with the directions each way in a step.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = intrinsic_dimension(model, dimension=100)

    References:
        Li et al., 2018, https://arxiv.org/abs/1804.08838; Aghajanyan et al., 2021,
        https://arxiv.org/abs/2012.13255.
    """
    inside = [{"adam": {"betas": betas, "eps": eps}}]
    space = {"modules": inside, "dimension": dimension, "kind": kind, "seed": seed}
    groups = trainable("intrinsic_dimension", params)
    return Optimizer(map(unnamed, groups), {"intrinsic_subspace": space}, {"lr": lr})
