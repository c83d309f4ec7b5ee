"""What is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import (
    EMA,
    LR,
    ClipNorm,
    ClipValue,
    HeavyBall,
    Normalize,
    NormGrowthLimiter,
    PolyakAveraging,
    Scale,
    WeightDecay,
)

BAD: list[tuple[Any, dict[str, Any], str]] = [
    (LR, {"lr": -1.0}, "lr"),
    (LR, {"lr": math.nan}, "lr"),
    (LR, {"lr": torch.tensor(-1.0)}, "lr"),
    (HeavyBall, {"momentum": -0.1}, "momentum"),
    (HeavyBall, {"momentum": 1.1}, "momentum"),
    (HeavyBall, {"dampening": -0.1}, "dampening"),
    (HeavyBall, {"dampening": 0.1, "nesterov": True}, "momentum"),
    (HeavyBall, {"momentum": 0.0, "nesterov": True}, "momentum"),
    (EMA, {"beta": 1.0}, "beta"),
    (EMA, {"beta": -0.1}, "beta"),
    (PolyakAveraging, {"beta": 1.0}, "beta"),
    (Scale, {"factor": math.inf}, "factor"),
    (WeightDecay, {"weight_decay": -0.1}, "weight_decay"),
    (WeightDecay, {"norm": 3}, "norm"),
    (NormGrowthLimiter, {"gamma": 0.99}, "gamma"),
    (ClipNorm, {"max_norm": 0.0}, "max_norm"),
    (ClipNorm, {"max_norm": 1.0, "norm_type": 0}, "norm_type"),
    (ClipNorm, {"max_norm": 1.0, "norm_type": math.nan}, "norm_type"),
    (ClipValue, {"clip_value": 0.0}, "clip_value"),
    (Normalize, {"ord": -1}, "ord"),
    (Normalize, {"eps": 0.0}, "eps"),
    (Normalize, {"dim": 1, "per_tensor": False}, "dim"),
]


@pytest.mark.parametrize(("cls", "arguments", "name"), BAD)
def test_values_out_of_range(cls: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        cls(**arguments)
    assert f"{cls.__name__}({name}=" in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (LR, {"lr": "0.1"}),
        (LR, {"lr": None}),
        (LR, {"lr": True}),
        (LR, {"lr": torch.ones(2)}),
        (ClipNorm, {"max_norm": 1.0, "norm_type": "fro"}),
        (Normalize, {"ord": "nuc"}),
        (Normalize, {"dim": 0.5}),
        (Normalize, {"dim": ()}),
        (Normalize, {"dim": "rows"}),
        (Scale, {"factor": "0.1"}),
    ],
)
def test_values_of_the_wrong_type(cls: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentTypeError, match=cls.__name__):
        cls(**arguments)


def test_nesterov_in_a_group_with_dampening() -> None:
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="nesterov"):
        Optimizer([{"params": [weight], "dampening": 0.5}], HeavyBall(nesterov=True), LR(0.1))
