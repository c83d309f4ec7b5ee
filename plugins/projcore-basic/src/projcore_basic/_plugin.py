"""Registers the plain parts of optimizers; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "lr",
        "projcore_basic:LR",
        summary="Multiplies the update by the learning rate.",
        paper="Robbins & Monro, 1951",
        example={"lr": 0.1},
    )
    register(
        "heavy_ball",
        "projcore_basic:HeavyBall",
        summary="Accumulates momentum, with dampening and Nesterov's look-ahead if wanted.",
        paper="Polyak, 1964",
        tags=("momentum",),
        example=[
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.1},
            {"momentum": 0.9, "nesterov": True},
        ],
    )
    register(
        "weight_decay",
        "projcore_basic:WeightDecay",
        summary="Pulls parameters towards zero, coupled to the gradient or decoupled from it.",
        paper="arXiv:1711.05101",
        tags=("regularization",),
        example={"weight_decay": 0.1},
    )
    register(
        "clip_norm",
        "projcore_basic:ClipNorm",
        summary="Scales the update down where its norm is above a bound.",
        paper="arXiv:1211.5063",
        tags=("clipping",),
        example=[{"max_norm": 1.0}, {"max_norm": 0.5, "norm_type": 1, "per_tensor": True}],
    )
    register(
        "clip_value",
        "projcore_basic:ClipValue",
        summary="Clips each element of the update to a bound.",
        paper="arXiv:1211.5063",
        tags=("clipping",),
        example={"clip_value": 0.1},
    )
    register(
        "normalize",
        "projcore_basic:Normalize",
        summary="Scales the update to unit norm.",
        paper="arXiv:1507.02030",
        example=[{}, {"ord": "inf"}, {"per_tensor": False}],
    )
    register(
        "sign",
        "projcore_basic:Sign",
        summary="Replaces each element of the update by its sign.",
        paper="arXiv:1802.04434",
        example={},
    )
    register(
        "torch_optim",
        "projcore_basic:TorchOptim",
        summary="Runs any optimizer class of torch.optim as a module.",
        example=[
            {"optimizer": "SGD", "options": {"lr": 0.1, "momentum": 0.9}},
            {"optimizer": "Adam"},
        ],
    )
