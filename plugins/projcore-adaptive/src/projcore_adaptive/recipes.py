"""Published optimizers that give matrices steps of their own, and Adam's to all else.

All take a model, or parameters, named or not, or groups of them. They go by the role of each
parameter (see `projcore.inspect_model`): given a model, its layers say what is what; given
parameters, names do. Stacks of matrices, as the experts of a mixture are, are taken matrix by
matrix. Groups that are added later go by their shape.
"""

from __future__ import annotations

from projcore import Optimizer
from projcore_adaptive._routed import HIDDEN, Params, Rule, Way, routed

__all__ = ["racs_adamw", "scale_adamw"]

Betas = tuple[float, float]


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
    racs = [
        {"racs": {"beta": beta, "iterations": iterations}},
        {"norm_growth_limiter": {"gamma": limit}},
    ]
    if scale != 1:
        racs.append({"scale": {"factor": scale}})
    adam = {"adam": {"betas": betas, "eps": eps}}
    ways = [Way([project], racs, "ndim>=2", folding=0), Way(["*"], [adam])]
    return routed(
        "racs_adamw", params, ways, [{"weight_decay": {"weight_decay": weight_decay}}, {"lr": lr}]
    )


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
        Way([HIDDEN], [rows], "ndim>=2", folding=0),
        Way(["role==head", "role==last"], [average, rows], "group==1", folding=1),
        Way(["role==embedding"], [columns], "group==2", folding=0),
        Way(["*"], [{"adam": {"betas": betas, "eps": eps}}]),
    ]
    return routed(
        "scale_adamw", params, ways, [{"weight_decay": {"weight_decay": weight_decay}}, {"lr": lr}]
    )
