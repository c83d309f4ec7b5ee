"""torch's schedulers act inside projections as outside, and as on torch's own optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from projcore import Optimizer
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, HeavyBall
from projcore.projections import ScalarProjection, To, VectorProjection

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=12),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "warm-up, then decay": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[4],
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, 0.2, step_size_up=3, cycle_momentum="momentum" in o.defaults
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=4),
}
WRAPS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "bare": lambda chain: chain,
    "vector": lambda chain: [VectorProjection(chain)],
    "scalar": lambda chain: [ScalarProjection(chain)],
    "nested": lambda chain: [VectorProjection([To([ScalarProjection(chain)], "float64")])],
}


def momentum(params: Any, wrap: str, **group: Any) -> Any:
    if wrap == "torch":
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)
    return Optimizer(params, *WRAPS[wrap]([HeavyBall(0.9), LR(0.1)]))


def adam(params: Any, wrap: str) -> Any:
    if wrap == "torch":
        return torch.optim.Adam(params, lr=0.1)
    return Optimizer(params, *WRAPS[wrap]([Adam(), LR(0.1)]))


@pytest.mark.pairwise
@pytest.mark.parametrize("elide", [True, False])
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("build", [momentum, adam])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(
    schedule: str, build: Any, wrap: str, elide: bool, network: Any, train: Any, close: Any
) -> None:
    results = []
    for where in (wrap, "torch"):
        model = network()
        optimizer = build(model.parameters(), where)
        if isinstance(optimizer, Optimizer):
            optimizer._use_passes(PASSES if elide else frozenset())
        train(model, optimizer, range(11), SCHEDULES[schedule](optimizer))
        results.append((model, optimizer))
    (ours, one), (theirs, other) = results
    close(ours, theirs)
    for key in one.param_groups[0].keys() & other.param_groups[0].keys() - {"params"}:
        assert one.param_groups[0][key] == other.param_groups[0][key]


def test_one_cycle_moves_the_momentum_as_well(network: Any) -> None:
    for build, key in ((momentum, "momentum"), (adam, "betas")):
        optimizer = build(network().parameters(), "vector")
        before = optimizer.param_groups[0][key]
        lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=12)
        assert optimizer.param_groups[0][key] != before


def test_a_rate_for_each_group(network: Any, train: Any, close: Any) -> None:
    results = []
    for ours in (True, False):
        model = network()
        groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters()}]
        optimizer = (
            Optimizer(groups, VectorProjection([Adam(), LR(0.1)]))
            if ours
            else torch.optim.Adam(groups, lr=0.1)
        )
        functions = [lambda step: 1 / (1 + step), lambda step: 0.9**step]
        train(model, optimizer, range(8), lr_scheduler.LambdaLR(optimizer, functions))
        results.append(model)
    close(*results)


@pytest.mark.parametrize("wrap", WRAPS)
def test_resuming_a_schedule(wrap: str, network: Any, train: Any, equal: Any) -> None:
    def build() -> Any:
        model = network()
        optimizer = adam(model.parameters(), wrap)
        return model, optimizer, SCHEDULES["OneCycleLR"](optimizer)

    model, optimizer, schedule = build()
    train(model, optimizer, range(4), schedule)
    saved = [each.state_dict() for each in (model, optimizer, schedule)]
    other = build()
    for each, state in zip(other, saved, strict=True):
        each.load_state_dict(state)
    train(model, optimizer, range(4, 10), schedule)
    train(*other[:2], range(4, 10), other[2])
    assert equal(model, other[0])
    assert other[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_rate_that_is_a_tensor(wrap: str, network: Any, train: Any, close: Any) -> None:
    results = []
    for where in (wrap, "torch"):
        model = network()
        if where == "torch":
            optimizer: Any = torch.optim.Adam(
                model.parameters(), lr=torch.tensor(0.1, dtype=torch.float64), foreach=False
            )
        else:
            chain = WRAPS[where]([Adam(), LR(torch.tensor(0.1, dtype=torch.float64))])
            optimizer = Optimizer(model.parameters(), *chain)
        train(model, optimizer, range(8), lr_scheduler.ExponentialLR(optimizer, 0.8))
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        results.append(model)
    close(*results)


def test_one_rate_tensor_for_several_groups(network: Any, train: Any, equal: Any) -> None:
    """Also where a module works on all of them at once, and after loading."""
    results = []
    for rate in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        model = network()
        groups = [{"params": [p]} for p in model.parameters()]
        optimizer = Optimizer(groups, VectorProjection([Adam(), LR(rate)]))
        optimizer._use_passes(frozenset())
        train(model, optimizer, range(3))
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(3, 6))
        results.append(model)
    assert equal(*results)


def test_plateau(network: Any, train: Any) -> None:
    model = network()
    optimizer = adam(model.parameters(), "vector")
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        train(model, optimizer, range(1))
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
