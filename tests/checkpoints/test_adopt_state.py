"""A run that began with an optimizer of torch goes on with ours as it would have gone on there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projcore import Optimizer, adopt_state
from projcore.errors import CheckpointError, ProjcoreWarning
from projcore.recipes import galore_adamw
from projcore_lowrank import from_galore_torch

# torch's class and its arguments, and the same in modules here.
PAIRS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "Adam": (torch.optim.Adam, {}, ["adam()", "lr(1.0)"]),
    "Adam, L2": (
        torch.optim.Adam,
        {"weight_decay": 0.1},
        ["weight_decay(0.0)", "adam()", "lr(1.0)"],
    ),
    "Adam, amsgrad": (torch.optim.Adam, {"amsgrad": True}, ["adam(amsgrad=True)", "lr(1.0)"]),
    "AdamW": (torch.optim.AdamW, {"betas": (0.8, 0.95)}, ["adamw()", "lr(1.0)"]),
    "AdamW, apart": (torch.optim.AdamW, {}, ["adam()", "weight_decay(0.5)", "lr(1.0)"]),
    "AdamW in a vector": (torch.optim.AdamW, {}, ["vector([clip_norm(1e9), adamw(), lr(1.0)])"]),
    "SGD": (torch.optim.SGD, {}, ["lr(1.0)"]),
    "SGD, momentum": (
        torch.optim.SGD,
        {"momentum": 0.8, "dampening": 0.1},
        ["heavy_ball()", "lr(1.0)"],
    ),
    "SGD, Nesterov": (
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        ["weight_decay()", "heavy_ball(nesterov=True)", "lr(1.0)"],
    ),
    "NAdam": (torch.optim.NAdam, {}, ["nadam()", "lr(1.0)"]),
    "RAdam": (torch.optim.RAdam, {}, ["radam()", "lr(1.0)"]),
    "Adamax": (torch.optim.Adamax, {}, ["adamax()", "lr(1.0)"]),
    "Adagrad": (torch.optim.Adagrad, {}, ["adagrad()", "lr(1.0)"]),
    "Adadelta": (torch.optim.Adadelta, {}, ["adadelta()", "lr(1.0)"]),
    "RMSprop": (torch.optim.RMSprop, {}, ["rmsprop()", "lr(1.0)"]),
    "Rprop": (torch.optim.Rprop, {}, ["rprop()"]),
    "Adafactor": (torch.optim.Adafactor, {}, ["adafactor()"]),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Sequence[int]) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 12, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :8].sin()).square().mean().backward()
        optimizer.step()


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-11) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def begun(cls: Any, arguments: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = cls(model.parameters(), lr=0.01, **arguments)
    train(model, optimizer, range(5))
    return model, optimizer


@pytest.mark.parametrize("name", PAIRS)
def test_the_run_goes_on(name: str) -> None:
    cls, arguments, modules = PAIRS[name]
    model, old = begun(cls, arguments)
    ours, theirs = copy.deepcopy((model, old))
    optimizer = Optimizer(ours.parameters(), *modules)
    adopt_state(optimizer, theirs)
    train(model, old, range(5, 15))
    train(ours, optimizer, range(5, 15))
    close(ours, model)
    if "momentum" in arguments or "adam" in name.lower():
        fresh, _ = begun(cls, arguments)
        train(fresh, Optimizer(fresh.parameters(), *modules), range(5, 15))
        with pytest.raises(AssertionError):  # the state matters
            close(fresh, model)


def test_groups_and_their_order_may_differ() -> None:
    model = network()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": biases, "weight_decay": 0.0}, {"params": weights}]
    old = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
    train(model, old, range(5))
    ours, theirs = copy.deepcopy((model, old))
    each = [{"params": [parameter]} for parameter in ours.parameters()]
    optimizer = Optimizer(each, "adamw()", "lr(1.0)")
    adopt_state(optimizer, theirs)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.3, 0.0]
    train(model, old, range(5, 15))
    train(ours, optimizer, range(5, 15))
    close(ours, model)


def test_the_other_optimizer_stays_as_it_is() -> None:
    model, old = begun(torch.optim.AdamW, {})
    before = copy.deepcopy(old.state_dict())
    optimizer = Optimizer(model.parameters(), "adamw()", "lr(1.0)")
    adopt_state(optimizer, old)
    train(model, optimizer, range(3))
    for saved, now in zip(
        before["state"].values(), old.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(saved[key], now[key]) for key in saved)


REFUSED: dict[str, tuple[Any, dict[str, Any], list[str], str]] = {
    "no such state": (torch.optim.Adam, {}, ["lion()", "lr(1.0)"], "eps="),
    "no such setting": (
        torch.optim.AdamW,
        {"weight_decay": 0.1},
        ["adam()", "lr(1.0)"],
        "weight_decay=0.1",
    ),
    "maximize": (torch.optim.Adam, {"maximize": True}, ["adam()", "lr(1.0)"], "maximize=True"),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}, ["adam()", "lr(1.0)"], "amsgrad=True"),
    "coupled": (torch.optim.Adam, {"weight_decay": 0.1}, ["adamw()", "lr(1.0)"], "coupled"),
    "decoupled": (
        torch.optim.AdamW,
        {},
        ["weight_decay()", "adam()", "lr(1.0)"],
        "coupled",
    ),
    "two rates": (torch.optim.Adam, {}, ["adam()", "lr(1.0)", "lr(0.5)"], "several modules"),
    "merged": (torch.optim.Adam, {}, ["vector([dct([adam()])])", "lr(1.0)"], "outside of"),
    "another shape": (torch.optim.Adam, {}, ["fourier([adam()], keep=0.5)", "lr(1.0)"], "shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused_before_anything_changes(name: str) -> None:
    cls, arguments, modules, message = REFUSED[name]
    model, old = begun(cls, arguments)
    optimizer = Optimizer(model.parameters(), *modules)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointError, match=message):
        adopt_state(optimizer, old)
    assert optimizer.state_dict() == before


def test_values_that_differ_within_a_group_are_refused() -> None:
    model = network()
    first, *others = model.parameters()
    old = torch.optim.AdamW([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.1)
    with pytest.raises(CheckpointError, match=r"lr=0.5 for some"):
        adopt_state(Optimizer(model.parameters(), "adamw()", "lr(1.0)"), old)


def test_other_parameters_are_refused() -> None:
    _, old = begun(torch.optim.AdamW, {})
    with pytest.raises(CheckpointError, match="different parameters"):
        adopt_state(Optimizer(network().parameters(), "adamw()", "lr(1.0)"), old)


def test_keys_of_schedulers_and_of_tools_are_kept() -> None:
    model = network()
    groups = [{"params": list(model.parameters()), "layer": 3}]
    old = torch.optim.AdamW(groups, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(old, lambda step: 0.5)
    optimizer = Optimizer(model.parameters(), "adamw()", "lr(1.0)")
    with pytest.warns(ProjcoreWarning, match="'layer'"):
        adopt_state(optimizer, old)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"], group["layer"]) == (0.05, 0.1, 3)


def test_counts_and_moments_get_the_dtypes_that_they_have_here() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    old = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    old.step()
    optimizer = Optimizer([weight], "to([adamw()], 'float32')", "lr(1.0)")
    adopt_state(optimizer, old)
    dtypes = {key.rpartition("/")[2]: value.dtype for key, value in optimizer.state[weight].items()}
    assert dtypes == {"step": torch.int64, "exp_avg": torch.float32, "exp_avg_sq": torch.float32}


class GaLoreOfTorch(torch.optim.Optimizer):
    """What galore-torch keeps after one step: for matrices, a projector beside Adam's moments.

    The package itself is compared in ``parity``; here, bases and their sides.
    """

    def __init__(self, parameters: Sequence[Tensor], side: str) -> None:
        group = {"rank": 3, "update_proj_gap": 50, "scale": 0.5, "proj_type": side}
        weights, biases = ([p for p in parameters if p.ndim == n] for n in (2, 1))
        super().__init__(
            [{"params": biases}, {"params": weights, **group}],
            {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0},
        )
        for parameter in parameters:
            inside = torch.randn_like(parameter)
            if parameter.ndim == 2:
                m, n = parameter.shape
                left = torch.linalg.qr(torch.randn(m, 3, dtype=torch.float64)).Q
                right = torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64)).Q
                how = {"std": m >= n, "reverse_std": m < n, "right": True, "left": False}.get(side)
                if how is None:
                    matrix, inside = [left, right.T], torch.randn(3, 3, dtype=torch.float64)
                elif how:
                    matrix, inside = right.T, torch.randn(m, 3, dtype=torch.float64)
                else:
                    matrix, inside = left, torch.randn(3, n, dtype=torch.float64)
                projector = SimpleNamespace(proj_type=side, ortho_matrix=matrix)
                self.state[parameter]["projector"] = projector
            self.state[parameter] |= {"step": 7, "exp_avg": inside, "exp_avg_sq": inside.square()}


@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right", "full"])
def test_galore_torch(side: str) -> None:
    """One step by hand: the moments inside, and out again by the basis that was adopted."""
    model = network()
    old = GaLoreOfTorch(list(model.parameters()), side)
    optimizer = galore_adamw(model, rank=3, side=side)
    adopt_state(optimizer, old, from_galore_torch)
    assert {group["rank"] for group in optimizer.param_groups} == {3, None}
    projected = next(group for group in optimizer.param_groups if group["rank"] == 3)
    assert (projected["period"], projected["scale"], projected["lr"]) == (50, 0.5, 0.02)
    before = copy.deepcopy(model)
    expected = [copy.deepcopy(old.state[parameter]) for parameter in model.parameters()]
    train(model, optimizer, [0])
    parameters = zip(model.parameters(), before.parameters(), expected, strict=True)
    for parameter, start, entries in parameters:
        assert parameter.grad is not None
        inside, back = parameter.grad, lambda x: x
        if parameter.ndim == 2:
            matrix = entries["projector"].ortho_matrix
            if side == "full":
                inside = matrix[0].T @ inside @ matrix[1].T
                back = lambda x, a=matrix: 0.5 * a[0] @ x @ a[1]  # noqa: E731
            elif matrix.shape[0] == 3:  # of a right one
                inside, back = inside @ matrix.T, lambda x, a=matrix: 0.5 * x @ a
            else:
                inside, back = matrix.T @ inside, lambda x, a=matrix: 0.5 * a @ x
        first = 0.9 * entries["exp_avg"] + 0.1 * inside
        second = 0.999 * entries["exp_avg_sq"] + 0.001 * inside.square()
        factor = (1 - 0.999**8) ** 0.5 / (1 - 0.9**8)
        step = 0.02 * factor * back(first / (second.sqrt() + 1e-6))
        torch.testing.assert_close(parameter, start - step, rtol=0, atol=1e-12)


def test_galore_torch_without_bias_correction_is_refused() -> None:
    model = network()
    old = GaLoreOfTorch(list(model.parameters()), "std")
    old.param_groups[0]["correct_bias"] = False
    with pytest.raises(CheckpointError, match="correct_bias"):
        adopt_state(galore_adamw(model, rank=3), old, from_galore_torch)
