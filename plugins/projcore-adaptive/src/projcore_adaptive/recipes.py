"""Published optimizers with special updates for matrices, and Adam for all other parameters.

All take a model, or parameters, named or not, or groups of them, which are routed by their roles:
see `projcore.recipe.routed`. Stacks of matrices, such as the experts of a mixture, are treated
matrix by matrix; complex ones use Adam, where the modules are for real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from projcore import Optimizer
from projcore.recipe import HIDDEN, Params, Project, Spec, Way, documented, routed

__all__ = [
    "adam_h",
    "dion2_adamw",
    "foam_adamw",
    "muon_h",
    "muon_heads_adamw",
    "muon_plus_adamw",
    "normuon_adamw",
    "racs_adamw",
    "scale_adamw",
    "soap_h",
    "soap_muon",
]

Betas = tuple[float, float]
recipe = documented(
    lr="Learning rate of both.",
    momentum="Momentum of Muon.",
    weight_decay="Coefficient of decoupled weight decay, for both.",
    period="Steps between refreshes of the bases.",
    ratio="The learning rate of the rest, relative to ``lr``.",
    project="The parameters that have these steps, by rules; by default, hidden layers.",
)


def _matrices(
    name: str,
    params: Params,
    lr: float,
    weight_decay: float,
    adam: Spec,
    project: Project,
    modules: Sequence[Spec],
) -> Optimizer:
    """Returns an optimizer that runs these modules on matrices, and Adam on the rest."""
    rules = HIDDEN if project is None else project
    ways = [Way(modules, rules, "ndim>=2"), Way([{"adam": adam}])]
    ending: list[Spec] = [{"weight_decay": weight_decay}, {"lr": lr}]
    return routed(name, params, ways, ending, unfit=_complex)


def _complex(parameter: Tensor, _: Mapping[str, Any]) -> str | None:
    """Returns why modules for real matrices leave a parameter out; None if they do not."""
    return "complex numbers" if parameter.is_complex() else None


def _muon(momentum: float) -> Spec:
    """Returns Muon with updates of the RMS of Adam's, and without weight decay."""
    settings = {"momentum": momentum, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return {"muon": {**settings, "flatten": True}}


@recipe
def racs_adamw(
    params: Params,
    lr: float = 1e-3,
    beta: float = 0.9,
    iterations: int = 5,
    limit: float = 1.01,
    scale: float = 1.0,
    weight_decay: float = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    project: Project = None,
) -> Optimizer:
    r"""RACS on matrices, with a state vector per dimension, and AdamW on the rest.

    The default ``lr`` is the paper's learning rate of 0.02 times its scale :math:`\alpha` of 0.05,
    which is also the paper's learning rate of Adam.

    Args:
        beta: Decay rate of the averages of the factors.
        iterations: Iterations that compute the factors.
        limit: The largest factor by which the norm of a matrix's update may grow in a step.
        scale: Factor of RACS's update; the paper uses 0.4 for 1.3 billion parameters.

    Cost: ``m + n + 1`` numbers of state per matrix; Adam has ``2 m n``. See `RACS`.

    References:
        Gong et al., 2025, https://arxiv.org/abs/2502.07752 (algorithm 1; appendix F.2).
    """
    racs: list[Spec] = [
        {"racs": {"beta": beta, "iterations": iterations}},
        {"norm_growth_limiter": {"gamma": limit}},
    ]
    if scale != 1:
        racs.append({"scale": {"factor": scale}})
    adam = {"betas": betas, "eps": eps}
    return _matrices("racs_adamw", params, lr, weight_decay, adam, project, racs)


@recipe
def foam_adamw(
    params: Params,
    lr: float = 1e-2,
    betas: Betas = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    level: int = 2,
    scale: float = 0.25,
    project: Project = None,
) -> Optimizer:
    r"""FOAM on matrices, with moments of block means, and AdamW on the rest.

    The defaults are those of the authors' script for a LLaMA of 60 million parameters. Differs from
    their code as `FOAM` does.

    Args:
        betas: Of both.
        eps: Of both, added to the root of the uncorrected second moment.
        level: :math:`\ell`; a block has :math:`2^\ell` elements.
        scale: Factor of FOAM's update.

    Cost: :math:`2 m n / 2^\ell` numbers of state per matrix; Adam has ``2 m n``.

    References:
        Wen et al., 2025, https://arxiv.org/abs/2512.07112 (algorithm 1).
    """
    foam: list[Spec] = [
        {"foam": {"betas": betas, "eps": eps, "level": level}},
        {"scale": {"factor": scale}},
    ]
    adam = {"betas": betas, "eps": eps, "eps_mode": "hat"}
    return _matrices("foam_adamw", params, lr, weight_decay, adam, project, foam)


@recipe
def scale_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    r"""SCALE: gradients of matrices normalized by output, momentum for the output layer only.

    Each row of the gradient of a weight of shape ``(outputs, inputs)`` is divided by its root mean
    square; each column, if its shape is ``(inputs, outputs)``, as that of an embedding, a
    transposed convolution, or GPT-2's ``Conv1D``. For the output layer, the moving average of the
    gradient is normalized. Vectors are updated by AdamW.

    A weight shared by the embedding and the output layer is treated as an embedding; if no output
    layer is identified, no parameter has momentum.

    Args:
        lr: Learning rate of all.
        momentum: Of the output layer, at least 0 and less than 1.

    Cost: ``m`` numbers of state per matrix, and ``m n`` for the output layer.
    Differs from the authors' code: layers that are not linear maps, such as depthwise convolutions,
    are updated by Adam.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = scale_adamw(model)
        >>> optimizer.memory().state < 4 * (30 * 20 + 4 * 50 + 50 + 20)
        True

    References:
        Glentis, Li, Han & Hong, 2025, https://arxiv.org/abs/2506.16659 (algorithm 1; the root mean
        square in place of the norm, and the columns of embeddings, follow their code).
    """
    rows = {"rms_normalize": {"beta": 0.0, "rms": None}}
    average = {"ema": {"beta": momentum, "debias": False}}
    ways = [
        Way([rows], HIDDEN, "ndim>=2"),
        Way([average, rows], ["role==head", "role==last"], "group==1"),
        Way([rows], "role==embedding", "group==2"),
        Way([{"adam": {"betas": betas, "eps": eps}}]),
    ]
    ending: list[Spec] = [{"weight_decay": weight_decay}, {"lr": lr}]
    return routed("scale_adamw", params, ways, ending, unfit=_complex)


@recipe
def normuon_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    beta2: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    r"""NorMuon on matrices: Muon with rows normalized by their mean square; AdamW on the rest.

    Updates of a matrix have a root mean square near 0.2, as in the paper, so that learning rates of
    Adam can be used.

    Args:
        beta2: Decay rate of the mean squares of rows.

    Cost: ``m n + m`` numbers of state per matrix, half of Adam's.

    References:
        Li et al., 2025, https://arxiv.org/abs/2510.05491 (algorithm 1).
    """
    modules: list[Spec] = [_muon(momentum), {"rms_normalize": {"beta": beta2, "rms": 0.2}}]
    adam = {"betas": betas}
    return _matrices("normuon_adamw", params, lr, weight_decay, adam, project, modules)


@recipe
def muon_plus_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    """Muon+ on matrices: Muon with normalized columns, then rows; AdamW on the rest.

    Cost: ``m n + m + n`` numbers of state per matrix, half of Adam's.
    Differs from the authors' code: the update has a root mean square of 0.2, so that learning rates
    of Adam can be used; in their code its rows have norm 1, times the root of ``m / n``.

    References:
        Zhang et al., 2026, https://arxiv.org/abs/2602.21545 (section 2.3, col-row).
    """
    columns = {"rms_normalize": {"beta": 0.0, "dim": 0}}
    rows = {"rms_normalize": {"beta": 0.0, "rms": 0.2}}
    modules: list[Spec] = [_muon(momentum), columns, rows]
    adam = {"betas": betas}
    return _matrices("muon_plus_adamw", params, lr, weight_decay, adam, project, modules)


@recipe
def muon_heads_adamw(
    params: Params,
    heads: Mapping[str, int],
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    """Muon on each attention head, and on each expert of a mixture; AdamW on the rest.

    The heads of a projection are parts of equal length along its first dimension; each is
    orthogonalized separately. Matrices that no rule matches are orthogonalized as a whole, and
    stacks of matrices matrix by matrix.

    Args:
        params: A model, named parameters, or groups of these.
        heads: The number of heads of each weight, by rules for names (see `projcore.Rules`), such
            as ``{"*.q_proj.weight": 16, "*.[kv]_proj.weight": 4}``.

    Raises:
        ArgumentError: If no parameter is for Muon, a rule matches no parameter, or the number of
            heads does not divide the first dimension.

    Cost: ``m n`` numbers of state per matrix, half of Adam's. Newton-Schulz of `h` heads of a
    square matrix takes `1 / h` of the operations.

    Example:
        >>> import torch
        >>> attention = torch.nn.MultiheadAttention(8, 4, bias=False)
        >>> optimizer = muon_heads_adamw(attention, {"in_proj_weight": 3 * 4})

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon (which splits query, key and
        value); GLM-5, 2026, https://arxiv.org/abs/2602.15763 (each head).
    """
    modules: list[Spec] = [_muon(momentum)]
    for where, parts in heads.items():
        modules = [{"split_fused": {"modules": modules, "parts": parts, "where": where}}]
    adam = {"betas": betas}
    return _matrices("muon_heads_adamw", params, lr, weight_decay, adam, project, modules)


@recipe
def dion2_adamw(
    params: Params,
    lr: float = 1e-3,
    fraction: float = 0.25,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    betas: Betas = (0.9, 0.95),
    project: Project = None,
) -> Optimizer:
    """Dion2 on matrices: Muon on the largest rows of the momentum only; AdamW on the rest.

    Args:
        fraction: Fraction of the rows that is orthogonalized.
        momentum: Factor of the momentum of the selected rows, after the step.

    Cost: ``m n`` numbers of state per matrix, half of Adam's; see `Dion2`.
    Differs from the authors' code: updates are scaled as `Muon`'s with ``"match_rms_adamw"``.

    References:
        Ahn et al., 2025, https://arxiv.org/abs/2512.16928 (algorithm 1).
    """
    settings = {"fraction": fraction, "momentum": momentum, "ns_coefficients": "polar_express"}
    dion2: Spec = {"dion2": {**settings, "adjust_lr_fn": "match_rms_adamw", "flatten": True}}
    adam = {"betas": betas}
    return _matrices("dion2_adamw", params, lr, weight_decay, adam, project, [dion2])


def _on_spheres(
    name: str,
    params: Params,
    lr: float,
    ratio: float,
    weight_decay: float,
    betas: Betas,
    project: Project,
    modules: Sequence[Spec],
    unfit: Callable[[Tensor, Mapping[str, Any]], str | None] = lambda parameter, settings: None,
) -> Optimizer:
    """Returns an optimizer that keeps the norms of matrices, with steps relative to them."""
    rules = HIDDEN if project is None else project
    rest: list[Spec] = [
        {"adam": {"betas": betas}},
        {"weight_decay": weight_decay},
        {"scale": ratio},
    ]
    ways = [Way([*modules, {"trust_ratio": {}}], rules, "ndim>=2"), Way(rest)]
    ending: list[Spec] = [{"lr": lr}]
    return routed(name, params, ways, ending, last=[{"hyperball": {}}], unfit=unfit)


@recipe
def adam_h(
    params: Params,
    lr: float = 1e-2,
    betas: Betas = (0.9, 0.95),
    eps: float = 1e-8,
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Project = None,
) -> Optimizer:
    """AdamH: Adam on matrices of constant norm, with steps relative to it; AdamW on the rest.

    Args:
        lr: The norm of a matrix's step, relative to the norm of the matrix.
        betas: Of both.
        eps: Of Adam for matrices.
        weight_decay: Decoupled, of the rest.
        project: The parameters that keep their norm, by rules; by default, hidden layers.

    Cost: ``2 m n + 1`` numbers of state per matrix, as Adam; see `Hyperball`.

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
    """
    adam: Spec = {"adam": {"betas": betas, "eps": eps}}
    return _on_spheres("adam_h", params, lr, ratio, weight_decay, betas, project, [adam])


@recipe
def muon_h(
    params: Params,
    lr: float = 1e-2,
    momentum: float = 0.95,
    betas: Betas = (0.9, 0.95),
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Project = None,
) -> Optimizer:
    """MuonH: Muon on matrices of constant norm, with steps relative to it; AdamW on the rest.

    Args:
        lr: The norm of a matrix's step, relative to the norm of the matrix.
        weight_decay: Decoupled, of the rest.
        project: The parameters that keep their norm, by rules; by default, hidden layers.

    Cost: ``m n + 1`` numbers of state per matrix, half of Adam's; see `Hyperball`.

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
    """
    modules = [_muon(momentum)]
    return _on_spheres("muon_h", params, lr, ratio, weight_decay, betas, project, modules, _complex)


@recipe
def soap_h(
    params: Params,
    lr: float = 1e-2,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    period: int = 10,
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Project = None,
    statistics: str = "shampoo",
) -> Optimizer:
    """SOAPH: SOAP on matrices of constant norm, with steps relative to it; AdamW on the rest.

    Args:
        lr: The norm of a matrix's step, relative to the norm of the matrix.
        betas: Of both; the second also of the covariances.
        eps: Of Adam for matrices.
        weight_decay: Decoupled, of the rest.
        project: The parameters that keep their norm, by rules; by default, hidden layers.
        statistics: The statistics of the bases, as in `SOAPRotation`: ``"kl"`` for KL-SOAP-H.

    Cost: ``2 m n + 2 m m + 2 n n + 1`` numbers of state per matrix; see `SOAPRotation` and
    `Hyperball`.

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3).
        Lin et al., 2025, https://arxiv.org/abs/2509.03378 (KL-SOAP).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    rotation = {"modules": [adam], "period": period, "beta": betas[1], "statistics": statistics}
    modules: list[Spec] = [{"soap_rotation": rotation}]
    return _on_spheres("soap_h", params, lr, ratio, weight_decay, betas, project, modules)


@recipe
def soap_muon(
    params: Params,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    period: int = 1,
    weight_decay: float = 0.0,
    project: Project = None,
) -> Optimizer:
    """SOAP-Muon on matrices: SOAP, orthogonalized at its norm; AdamW on the rest.

    Args:
        betas: Of Adam; the second also of the covariances.

    Cost: ``2 m n + 2 m m + 2 n n`` numbers of state per matrix; see `SOAPRotation` and
    `Orthogonalize`.
    Differs from the authors' script, which has no published description: its gate by a trust ratio
    is omitted.

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3, SOAP).
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon (orthogonalization).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    rotation = {"modules": [adam], "period": period, "beta": betas[1]}
    orthogonal = {"flatten": True, "keep_norm": True}
    modules: list[Spec] = [{"soap_rotation": rotation}, {"orthogonalize": orthogonal}]
    rest = {"betas": betas}
    return _matrices("soap_muon", params, lr, weight_decay, rest, project, modules)
