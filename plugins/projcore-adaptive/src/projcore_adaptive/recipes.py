"""Published optimizers that give matrices steps of their own, and Adam's to all else.

All take a model, or parameters, named or not, or groups of them. They go by the role of each
parameter (see `projcore.inspect_model`): given a model, its layers say what is what; given
parameters, names do. Stacks of matrices, as the experts of a mixture are, are taken matrix by
matrix. Groups that are added later go by their shape.
"""

from __future__ import annotations

from collections.abc import Mapping

from projcore import Optimizer
from projcore_adaptive._routed import HIDDEN, Params, Rule, Spec, Way, routed

__all__ = [
    "adam_h",
    "dion2_adamw",
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


def _matrices(
    recipe: str,
    params: Params,
    lr: float,
    weight_decay: float,
    adam: Spec,
    project: Rule,
    modules: list[Spec],
) -> Optimizer:
    """Returns an optimizer of these modules for matrices, and of Adam for the rest."""
    ways = [Way([project], modules, "ndim>=2"), Way(["*"], [{"adam": adam}])]
    return routed(
        recipe, params, ways, [{"weight_decay": {"weight_decay": weight_decay}}, {"lr": lr}]
    )


def _muon(momentum: float) -> Spec:
    """Returns Muon with steps of the length of Adam's, and without decay of its own."""
    settings = {"momentum": momentum, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    return {"muon": {**settings, "flatten": True}}


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
    project: Rule = HIDDEN,
) -> Optimizer:
    r"""RACS on matrices, which keep a vector for each side, and AdamW on the rest.

    The paper's learning rate of 0.02 times its scale :math:`\alpha` of 0.05 is the ``lr`` here, and
    Adam's there.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        beta: Of the means of factors.
        iterations: In which the factors are found.
        limit: The most by which the norm of a matrix's update grows in a step.
        scale: What RACS's update is multiplied by; 0.4 is the paper's for 1.3 billion parameters.
        weight_decay: Decoupled.
        betas: Of Adam.
        eps: Of Adam.
        project: What RACS is for; by default, hidden layers.

    Raises:
        ArgumentError: If RACS would be for nothing, or a setting is out of range.

    Cost: memory of ``m + n + 1`` numbers for a matrix; Adam's is ``2 m n``. See `RACS`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = racs_adamw(model)

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


def scale_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    r"""SCALE: gradients of matrices normalized by output, momentum for the output layer only.

    The gradient of a weight of shape ``(outputs, inputs)`` has each row divided by its root mean
    square; that of an embedding, of shape ``(tokens, features)``, each column. Of the output layer
    it is the running mean that is normalized. Vectors are AdamW's.

    A weight that is both embedding and output layer is taken for an embedding; without a layer that
    is known to be the output, no parameter has momentum.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of all.
        momentum: Of the output layer, at least 0 and less than 1.
        weight_decay: Decoupled.
        betas: Of Adam.
        eps: Of Adam.

    Raises:
        ArgumentError: If no parameter is a matrix of a hidden layer, or a setting is out of range.

    Cost: memory of ``m`` numbers for a matrix, and of ``m n`` for the output layer.
    Differs from the authors' code: what is no linear map, as a depthwise convolution, is Adam's.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = scale_adamw(model)
        >>> optimizer.memory().state < 4 * (30 * 20 + 4 * 50 + 50 + 20)
        True

    References:
        Glentis, Li, Han & Hong, 2025, https://arxiv.org/abs/2506.16659 (algorithm 1; the root mean
        square in place of the norm, and what is an embedding's column, are their code's).
    """
    rows = {"rms_normalize": {"beta": 0.0, "rms": None}}
    columns = {"rms_normalize": {"beta": 0.0, "rms": None, "dim": 0}}
    average = {"ema": {"beta": momentum, "debias": False}}
    ways = [
        Way([HIDDEN], [rows], "ndim>=2"),
        Way(["role==head", "role==last"], [average, rows], "group==1"),
        Way(["role==embedding"], [columns], "group==2"),
        Way(["*"], [{"adam": {"betas": betas, "eps": eps}}]),
    ]
    return routed(
        "scale_adamw", params, ways, [{"weight_decay": {"weight_decay": weight_decay}}, {"lr": lr}]
    )


def normuon_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    beta2: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Rule = HIDDEN,
) -> Optimizer:
    r"""NorMuon on matrices: Muon, of which all rows have one length of late; AdamW on the rest.

    Steps of a matrix have a root mean square near 0.2, as in the paper, so that Adam's learning
    rates suit it.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        momentum: Of Muon.
        beta2: Of the mean squares of rows.
        weight_decay: Decoupled, of both.
        betas: Of Adam.
        project: What NorMuon is for; by default, hidden layers.

    Raises:
        ArgumentError: If NorMuon would be for nothing, or a setting is out of range.

    Cost: memory of ``m n + m`` numbers for a matrix, half of Adam's.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = normuon_adamw(model)

    References:
        Li et al., 2025, https://arxiv.org/abs/2510.05491 (algorithm 1).
    """
    modules: list[Spec] = [_muon(momentum), {"rms_normalize": {"beta": beta2, "rms": 0.2}}]
    adam = {"betas": betas}
    return _matrices("normuon_adamw", params, lr, weight_decay, adam, project, modules)


def muon_plus_adamw(
    params: Params,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Rule = HIDDEN,
) -> Optimizer:
    """Muon+ on matrices: Muon, whose columns and then rows are normalized; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        momentum: Of Muon.
        weight_decay: Decoupled, of both.
        betas: Of Adam.
        project: What Muon+ is for; by default, hidden layers.

    Raises:
        ArgumentError: If Muon+ would be for nothing, or a setting is out of range.

    Cost: memory of ``m n + m + n`` numbers for a matrix, half of Adam's.
    Differs from the authors' code: the result has a root mean square of 0.2, so that Adam's
    learning rates suit it; there its rows have norm 1, times the root of ``m / n``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = muon_plus_adamw(model)

    References:
        Zhang et al., 2026, https://arxiv.org/abs/2602.21545 (section 2.3, col-row).
    """
    columns = {"rms_normalize": {"beta": 0.0, "dim": 0}}
    rows = {"rms_normalize": {"beta": 0.0, "rms": 0.2}}
    modules: list[Spec] = [_muon(momentum), columns, rows]
    adam = {"betas": betas}
    return _matrices("muon_plus_adamw", params, lr, weight_decay, adam, project, modules)


def muon_heads_adamw(
    params: Params,
    heads: Mapping[str, int],
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: Betas = (0.9, 0.95),
    project: Rule = HIDDEN,
) -> Optimizer:
    """Muon on each attention head, and on each expert of a mixture; AdamW on the rest.

    The heads of a projection are parts of equal length along its first dimension; each is
    orthogonalized by itself. Matrices that no rule names are orthogonalized as they are, and stacks
    of matrices matrix by matrix.

    Args:
        params: A model, named parameters, or groups of these.
        heads: How many heads a weight has, by rules for names (see `projcore.Rules`), such as
            ``{"*.q_proj.weight": 16, "*.[kv]_proj.weight": 4}``.
        lr: Learning rate of both.
        momentum: Of Muon.
        weight_decay: Decoupled, of both.
        betas: Of Adam.
        project: What Muon is for; by default, hidden layers.

    Raises:
        ArgumentError: If Muon would be for nothing, a rule names nothing, or heads do not fit.

    Cost: memory of ``m n`` numbers for a matrix, half of Adam's. Newton-Schulz of `h` heads of a
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


def dion2_adamw(
    params: Params,
    lr: float = 1e-3,
    fraction: float = 0.25,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    betas: Betas = (0.9, 0.95),
    project: Rule = HIDDEN,
) -> Optimizer:
    """Dion2 on matrices: Muon on the largest rows of the momentum alone; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        fraction: Of the rows.
        momentum: Of rows that were used.
        weight_decay: Decoupled, of both.
        betas: Of Adam.
        project: What Dion2 is for; by default, hidden layers.

    Raises:
        ArgumentError: If Dion2 would be for nothing, or a setting is out of range.

    Cost: memory of ``m n`` numbers for a matrix, half of Adam's; see `Dion2`.
    Differs from the authors' code: steps are as long as `Muon`'s with ``"match_rms_adamw"``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = dion2_adamw(model)

    References:
        Ahn et al., 2025, https://arxiv.org/abs/2512.16928 (algorithm 1).
    """
    settings = {"fraction": fraction, "momentum": momentum, "ns_coefficients": "polar_express"}
    dion2: Spec = {"dion2": {**settings, "adjust_lr_fn": "match_rms_adamw", "flatten": True}}
    adam = {"betas": betas}
    return _matrices("dion2_adamw", params, lr, weight_decay, adam, project, [dion2])


def _on_spheres(
    recipe: str,
    params: Params,
    lr: float,
    ratio: float,
    weight_decay: float,
    betas: Betas,
    project: Rule,
    modules: list[Spec],
) -> Optimizer:
    """Returns an optimizer that keeps the norms of matrices, by steps relative to these."""
    rest: list[Spec] = [
        {"adam": {"betas": betas}},
        {"weight_decay": {"weight_decay": weight_decay}},
    ]
    ways = [
        Way([project], [*modules, {"trust_ratio": {}}], "ndim>=2"),
        Way(["*"], [*rest, {"scale": {"factor": ratio}}]),
    ]
    return routed(recipe, params, ways, [{"lr": lr}], [{"hyperball": {}}])


def adam_h(
    params: Params,
    lr: float = 1e-2,
    betas: Betas = (0.9, 0.95),
    eps: float = 1e-8,
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Rule = HIDDEN,
) -> Optimizer:
    """AdamH: Adam on matrices, which keep their norm, by steps relative to it; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: The length of a matrix's step, of its norm.
        betas: Of both.
        eps: Of Adam for matrices.
        ratio: The learning rate of the rest, relative to ``lr``.
        weight_decay: Decoupled, of the rest.
        project: What keeps its norm; by default, hidden layers.

    Raises:
        ArgumentError: If nothing would keep its norm, or a setting is out of range.

    Cost: memory of ``2 m n + 1`` numbers for a matrix, as Adam's; see `Hyperball`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = adam_h(model)

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
    """
    adam: Spec = {"adam": {"betas": betas, "eps": eps}}
    return _on_spheres("adam_h", params, lr, ratio, weight_decay, betas, project, [adam])


def muon_h(
    params: Params,
    lr: float = 1e-2,
    momentum: float = 0.95,
    betas: Betas = (0.9, 0.95),
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Rule = HIDDEN,
) -> Optimizer:
    """MuonH: Muon on matrices, which keep their norm, by steps relative to it; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: The length of a matrix's step, of its norm.
        momentum: Of Muon.
        betas: Of Adam.
        ratio: The learning rate of the rest, relative to ``lr``.
        weight_decay: Decoupled, of the rest.
        project: What keeps its norm; by default, hidden layers.

    Raises:
        ArgumentError: If nothing would keep its norm, or a setting is out of range.

    Cost: memory of ``m n + 1`` numbers for a matrix, half of Adam's; see `Hyperball`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = muon_h(model)

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
    """
    return _on_spheres("muon_h", params, lr, ratio, weight_decay, betas, project, [_muon(momentum)])


def soap_h(
    params: Params,
    lr: float = 1e-2,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    period: int = 10,
    ratio: float = 0.1,
    weight_decay: float = 0.0,
    project: Rule = HIDDEN,
    statistics: str = "shampoo",
) -> Optimizer:
    """SOAPH: SOAP on matrices, which keep their norm, by steps relative to it; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: The length of a matrix's step, of its norm.
        betas: Of both; the second also of the covariances.
        eps: Of Adam for matrices.
        period: Steps between new bases.
        ratio: The learning rate of the rest, relative to ``lr``.
        weight_decay: Decoupled, of the rest.
        project: What keeps its norm; by default, hidden layers.
        statistics: What makes the bases, as of `SOAPRotation`: ``"kl"`` for KL-SOAP-H.

    Raises:
        ArgumentError: If nothing would keep its norm, or a setting is out of range.

    Cost: memory of ``2 m n + 2 m m + 2 n n + 1`` numbers for a matrix; see `SOAPRotation` and
    `Hyperball`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = soap_h(model)

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3).
        Lin et al., 2025, https://arxiv.org/abs/2509.03378 (KL-SOAP).
    """
    adam = {"adam": {"betas": betas, "eps": eps}}
    rotation = {"modules": [adam], "period": period, "beta": betas[1], "statistics": statistics}
    modules: list[Spec] = [{"soap_rotation": rotation}]
    return _on_spheres("soap_h", params, lr, ratio, weight_decay, betas, project, modules)


def soap_muon(
    params: Params,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: float = 1e-8,
    period: int = 1,
    weight_decay: float = 0.0,
    project: Rule = HIDDEN,
) -> Optimizer:
    """SOAP-Muon on matrices: SOAP, made orthogonal with its norm kept; AdamW on the rest.

    Args:
        params: A model, parameters, or groups.
        lr: Learning rate of both.
        betas: Of Adam; the second also of the covariances.
        eps: Of Adam.
        period: Steps between new bases.
        weight_decay: Decoupled, of both.
        project: What SOAP-Muon is for; by default, hidden layers.

    Raises:
        ArgumentError: If SOAP-Muon would be for nothing, or a setting is out of range.

    Cost: memory of ``2 m n + 2 m m + 2 n n`` numbers for a matrix; see `SOAPRotation` and
    `Orthogonalize`.
    Differs from the authors' script, of which no description was at hand: their gate by a trust
    ratio is left out.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> optimizer = soap_muon(model)

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
