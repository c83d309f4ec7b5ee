"""What is refused, what is kept, and what groups may change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import (
    LAMB,
    LARS,
    LR,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamMini,
    AdamW,
    Adan,
    BiasCorrection,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Adam, {"betas": (1.0, 0.9)}, "betas[0]"),
    (Adam, {"betas": (0.9, -0.1)}, "betas[1]"),
    (Adam, {"betas": (0.9, math.nan)}, "betas[1]"),
    (Adam, {"eps": -1e-8}, "eps"),
    (AdamW, {"betas": (0.9, 1.5)}, "betas[1]"),
    (AdamW, {"weight_decay": -0.1}, "weight_decay"),
    (RMSprop, {"alpha": 1.0}, "alpha"),
    (RMSprop, {"momentum": -0.1}, "momentum"),
    (RMSprop, {"eps": -1.0}, "eps"),
    (Adagrad, {"lr_decay": -0.1}, "lr_decay"),
    (Adagrad, {"initial_accumulator_value": -1.0}, "initial_accumulator_value"),
    (Adagrad, {"eps": math.nan}, "eps"),
    (Lion, {"betas": (0.9, 1.0)}, "betas[1]"),
    (Adam, {"eps_mode": "outside"}, "eps_mode"),
    (NAdam, {"momentum_decay": -0.1}, "momentum_decay"),
    (Adadelta, {"rho": 1.1}, "rho"),
    (Adan, {"betas": (0.9, 0.9, 1.0)}, "betas[2]"),
    (AdamMini, {"block": "head"}, "block"),
    (BiasCorrection, {"betas": (1.0, 0.9)}, "betas[0]"),
    (BiasCorrection, {"betas": (0.9, math.nan)}, "betas[1]"),
    (LAMB, {"weight_decay": -0.1}, "weight_decay"),
    (LARS, {"trust_coefficient": -0.1}, "trust_coefficient"),
    (LARS, {"weight_decay": math.nan}, "weight_decay"),
    (Rprop, {"lr": -0.1}, "lr"),
    (Rprop, {"etas": (0.0, 1.2)}, "etas[0]"),
    (Rprop, {"etas": (0.5, 1.0)}, "etas[1]"),
    (Rprop, {"step_sizes": (-1.0, 1.0)}, "step_sizes[0]"),
    (Rprop, {"step_sizes": (1.0, 0.5)}, "step_sizes[1]"),
    *(
        (cls, {"eps": -1.0}, "eps")
        for cls in (NAdam, RAdam, Adamax, Adadelta, Adan, AdamMini, LAMB)
    ),
    *((cls, {"betas": (0.9, 1.0)}, "betas[1]") for cls in (NAdam, RAdam, Adamax, AdamMini, LAMB)),
]


@pytest.mark.parametrize(("cls", "arguments", "name"), BAD)
def test_values_out_of_range(cls: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        cls(**arguments)
    assert f"{cls.__name__}({name}=" in str(caught.value)


@pytest.mark.parametrize("cls", [Adam, AdamW, BiasCorrection, Lion])
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None, ("a", 0.9)])
def test_betas_that_are_no_pair(cls: Any, betas: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="betas"):
        cls(betas=betas)


def test_other_tuples_of_another_length() -> None:
    with pytest.raises(ArgumentTypeError, match="It must be 3 numbers"):
        Adan(betas=(0.9, 0.99))  # type: ignore[arg-type]
    for name in ("etas", "step_sizes"):
        with pytest.raises(ArgumentTypeError, match=rf"{name}=\(0.5,\).*must be a pair of numbers"):
            Rprop(**{name: (0.5,)})  # type: ignore[arg-type]


def test_bad_values_in_groups() -> None:
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="betas"):
        Optimizer([{"params": [weight], "betas": (2.0, 0.9)}], Adam(), LR(0.1))


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Adam(), ["step", "exp_avg", "exp_avg_sq"]),
        (Adam(amsgrad=True), ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (AdamW(), ["step", "exp_avg", "exp_avg_sq"]),
        (RMSprop(), ["square_avg"]),
        (RMSprop(centered=True, momentum=0.9), ["square_avg", "grad_avg", "momentum_buffer"]),
        (Adagrad(), ["step", "sum"]),
        (Lion(), ["exp_avg"]),
        (NAdam(), ["step", "mu_product", "exp_avg", "exp_avg_sq"]),
        (RAdam(), ["step", "exp_avg", "exp_avg_sq"]),
        (Adamax(), ["step", "exp_avg", "exp_inf"]),
        (Adadelta(), ["square_avg", "acc_delta"]),
        (Rprop(), ["prev", "step_size"]),
        (Adan(), ["step", "exp_avg", "exp_avg_diff", "exp_avg_sq", "previous"]),
        (BiasCorrection(), ["step"]),
        (LAMB(), ["step", "exp_avg", "exp_avg_sq"]),
        (LARS(), []),
        (Muon(), ["momentum_buffer"]),
    ],
    ids=str,
)
def test_memory(module: Any, names: list[str]) -> None:
    weight = torch.randn(3, 4).t().requires_grad_()
    weight.grad = torch.ones_like(weight)
    optimizer = Optimizer([weight], module, LR(0.1))
    optimizer.step()
    memory = optimizer.state[weight]
    assert {key.removeprefix("0/") for key in memory} == set(names)
    assert set(names) <= set(module.kinds)
    for key, value in memory.items():
        if key not in ("0/step", "0/mu_product"):
            assert value.shape == weight.shape
            assert value.stride() == weight.stride()
            assert value.isfinite().all()


def test_a_correction_by_itself_is_that_of_adam() -> None:
    """Also of betas that differ between groups and change on the way, given to both modules."""

    def groups() -> list[dict[str, Any]]:
        ones = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        return [{"params": ones[:1]}, {"params": ones[1:]}]

    apart = Optimizer(groups(), Adam(eps=0.0, bias_correction=False), BiasCorrection(), LR(0.1))
    whole = Optimizer(groups(), Adam(eps=0.0), LR(0.1))
    assert apart.defaults.keys() == {"0.betas", "eps", "1.betas", "lr"}
    for step in range(6):
        for optimizer, keys in ((apart, ("0.betas", "1.betas")), (whole, ("betas",))):
            for i, group in enumerate(optimizer.param_groups):
                for key in keys:
                    group[key] = (0.9 - 0.1 * step - 0.05 * i, 0.99 - 0.01 * step)
                for k, weight in enumerate(group["params"]):
                    missing = k == 1 and step % 2
                    weight.grad = None if missing else torch.sin(weight.detach() * (k + 2))
            optimizer.step()
    for one, other in zip(apart.param_groups, whole.param_groups, strict=True):
        for mine, theirs in zip(one["params"], other["params"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


def test_momentum_of_rmsprop_is_a_setting_where_there_is_a_buffer() -> None:
    weight = torch.zeros(2, requires_grad=True)
    assert "momentum" in Optimizer([weight], RMSprop(momentum=0.5), LR(0.1)).param_groups[0]
    with pytest.raises(ArgumentError, match="momentum"):
        Optimizer([{"params": [weight], "momentum": 0.5}], RMSprop(), LR(0.1))


def test_gradients_are_not_written() -> None:
    for module in (Adam(), AdamW(), RMSprop(momentum=0.9), Adagrad(), Lion()):
        weight = torch.ones(3, requires_grad=True)
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
        Optimizer([weight], module, LR(0.1)).step()
        torch.testing.assert_close(weight.grad, torch.tensor([1.0, -2.0, 3.0]), rtol=0, atol=0)
