"""Registers the basic parts of optimizers without importing them."""

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
        "scale",
        "projcore_basic:Scale",
        summary="Multiplies the update by a constant factor, which schedulers leave alone.",
        example=[{"factor": 0.5}, {"factor": -0.01}],
    )
    register(
        "heavy_ball",
        "projcore_basic:HeavyBall",
        summary="Momentum as in torch.optim.SGD, with optional dampening and Nesterov.",
        paper="Polyak, 1964",
        tags=("momentum",),
        example=[
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.1},
            {"momentum": 0.9, "nesterov": True},
        ],
    )
    register(
        "ema",
        "projcore_basic:EMA",
        summary="Replaces the update by its exponential moving average.",
        paper="arXiv:1412.6980",
        tags=("momentum",),
        example=[{"beta": 0.9}, {"beta": 0.5, "debias": False}],
    )
    register(
        "weight_decay",
        "projcore_basic:WeightDecay",
        summary="Weight decay: L2 or L1, coupled to the gradient or decoupled.",
        paper="arXiv:1711.05101",
        tags=("regularization",),
        example=[
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "norm": 1},
            {"weight_decay": 0.1, "cautious": True},
        ],
    )
    register(
        "clip_norm",
        "projcore_basic:ClipNorm",
        summary="Clips the norm of the update, of all tensors together or of each.",
        paper="arXiv:1211.5063",
        tags=("clipping",),
        example=[
            {"max_norm": 1.0},
            {"max_norm": 0.5, "norm_type": 1, "per_tensor": True, "nonfinite": "skip"},
        ],
    )
    register(
        "clip_value",
        "projcore_basic:ClipValue",
        summary="Clips each element of the update to an interval.",
        paper="arXiv:1211.5063",
        tags=("clipping",),
        example=[{"clip_value": 0.1}, {"clip_value": 0.1, "nonfinite": "raise"}],
    )
    register(
        "normalize",
        "projcore_basic:Normalize",
        summary="Scales the update to unit norm.",
        paper="arXiv:1507.02030",
        example=[{}, {"ord": "inf"}, {"per_tensor": False}, {"dim": 1}],
    )
    register(
        "norm_growth_limiter",
        "projcore_basic:NormGrowthLimiter",
        summary="Limits how fast the norm of the update grows from step to step.",
        paper="arXiv:2410.01623",
        tags=("clipping",),
        example={"gamma": 1.01},
    )
    register(
        "centralize",
        "projcore_basic:Centralize",
        summary="Gradient centralization: subtracts the mean of each row.",
        paper="arXiv:2004.01461",
        example={},
    )
    register(
        "cautious",
        "projcore_basic:Cautious",
        summary="Zeroes elements of the update whose sign differs from the gradient's.",
        paper="arXiv:2411.16085",
        example={},
    )
    register(
        "gradient_noise",
        "projcore_basic:GradientNoise",
        summary="Adds Gaussian noise with decaying variance to the update.",
        paper="arXiv:1511.06807",
        tags=("stochastic",),
        example={"eta": 0.01, "seed": 1},
    )
    register(
        "sign",
        "projcore_basic:Sign",
        summary="Replaces each element of the update by its sign.",
        paper="arXiv:1802.04434",
        example={},
    )
    register(
        "gradient_accumulation",
        "projcore_basic:GradientAccumulation",
        summary="Runs modules every few steps, on the mean of the accumulated updates.",
        example=[
            {"modules": ["heavy_ball(0.9)", "lr(0.1)"], "period": 2},
            {"modules": ["clip_norm(1.0)", "cautious()"], "period": 3, "mean": False},
        ],
    )
    register(
        "polyak_averaging",
        "projcore_basic:PolyakAveraging",
        summary="Averages the parameters after each step: running mean or EMA.",
        paper="Polyak & Juditsky, 1992",
        tags=("averaging",),
        example=[{}, {"beta": 0.9}],
    )
    register(
        "schedule_free",
        "projcore_basic:ScheduleFree",
        summary="Schedule-free learning: averages iterates instead of decaying the rate.",
        paper="arXiv:2405.15682",
        tags=("averaging",),
        example={"lr": 0.1},
    )
    register(
        "lookahead",
        "projcore_basic:Lookahead",
        summary="Lookahead: interpolates slow weights towards fast ones every few steps.",
        paper="arXiv:1907.08610",
        tags=("averaging",),
        example={"period": 2},
    )
    register(
        "ema_nesterov",
        "projcore_basic:EMANesterov",
        summary="Nesterov's look-ahead along the exponential moving average of the steps.",
        paper="arXiv:2605.25395",
        tags=("averaging",),
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
