# ruff: noqa: D103
"""Our modules that are no subspace methods, against pytorch-optimizer over 250 steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import problem
import pytest
import pytorch_optimizer as theirs
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer as TorchOptimizer

from projcore import Optimizer

MATRICES = ((8, 20), (20, 8), (12, 12), (8, 20))
Build = Callable[[list[Parameter]], TorchOptimizer]


class Case(NamedTuple):
    """What is compared.

    Attributes:
        chain: Ours.
        oracle: Makes theirs.
        shapes: Of the parameters.
        tolerance: How far apart both may be in float64, of the largest entry, and in float32.
    """

    chain: str
    oracle: Build
    shapes: tuple[tuple[int, ...], ...] = problem.SHAPES
    tolerance: tuple[float, float] = (1e-9, 1e-5)


def muon_group(params: list[Parameter], **settings: Any) -> list[dict[str, Any]]:
    return [{"params": params, "use_muon": True, "lr": 0.02, "weight_decay": 0.1, **settings}]


CASES: dict[str, Case] = {
    # Both round momentum to bfloat16; ours is bitwise theirs as long as gradients are.
    "normuon": Case(
        "muon(weight_decay=0.0); rms_normalize(0.9, eps=1e-10); weight_decay(0.1); lr(0.02)",
        lambda params: theirs.NorMuon(muon_group(params, beta2=0.9)),
        MATRICES,
    ),
    "normuon of the paper": Case(
        "muon(weight_decay=0.0); rms_normalize(0.95, rms=0.2, eps=1e-10);"
        "weight_decay(0.1); lr(0.02)",
        lambda params: theirs.NorMuon(muon_group(params, update_scale="match_rms")),
        MATRICES,
    ),
    "ademamix": Case(
        "ademamix((0.9, 0.99, 0.999), warmup=150); weight_decay(0.1); lr(0.003)",
        lambda params: theirs.AdEMAMix(
            params,
            lr=0.003,
            betas=(0.9, 0.99, 0.999),
            weight_decay=0.1,
            weight_decouple=True,
            t_alpha_beta3=150,
            alpha=5.0,
        ),
    ),
    # Its norms are bounded by division, ours as torch does, with 1e-6 added.
    "mars": Case(
        'mars(); clip_norm(1.0, per_tensor=True); adam((0.95, 0.99), eps_mode="hat");'
        "weight_decay(0.1); lr(0.003)",
        lambda params: theirs.MARS(params, lr=0.003, weight_decay=0.1, optimize_1d=True),
        tolerance=(2e-6, 1e-5),
    ),
    "schedule-free adamw": Case(
        "adam((0.0, 0.99)); weight_decay(0.1); schedule_free(0.01)",
        lambda params: theirs.ScheduleFreeAdamW(
            params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=0
        ),
    ),
    "schedule-free sgd": Case(
        "weight_decay(0.1); schedule_free(0.1)",
        lambda params: theirs.ScheduleFreeSGD(
            params, lr=0.1, momentum=0.9, weight_decay=0.1, warmup_steps=0
        ),
    ),
    "lookahead": Case(
        "adam(); lr(0.003); lookahead(0.3, 4)",
        lambda params: theirs.Lookahead(torch.optim.Adam(params, lr=0.003), k=4, alpha=0.3),
    ),
    "muon with polar express": Case(
        "muon(weight_decay=0.1, ns_coefficients=[(8.237312490495555, -23.157747414558198, "
        "16.680568411445915), (4.082441999064835, -2.893047735332586, 0.5252849256975648), "
        "(3.9263479922546582, -2.8547468034765298, 0.5318022422894988)], ns_steps=3); lr(0.02)",
        lambda params: theirs.Muon(muon_group(params, ns_coeffs="polar_express", ns_steps=3)),
        MATRICES,
    ),
}


def difference(mine: list[list[Tensor]], other: list[list[Tensor]]) -> float:
    """Returns the largest difference after any number of steps, of the largest entry."""
    return max(
        ((a - b).abs().max() / b.abs().max()).item()
        for now, then in zip(mine, other, strict=True)
        for a, b in zip(now, then, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_parameters_take_the_same_way(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    how: dict[str, Any] = {"shapes": case.shapes, "dtype": dtype}
    ours = problem.run(lambda params: Optimizer(params, *case.chain.split(";")), **how)
    found = difference(ours, problem.run(case.oracle, **how))
    assert found <= case.tolerance[dtype is torch.float32]
