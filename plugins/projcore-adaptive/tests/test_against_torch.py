"""Each method follows torch.optim's own trajectory, bare and inside projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch

from projcore import Module, Optimizer
from projcore.modules import LR, Adagrad, Adam, AdamW, RMSprop, WeightDecay
from projcore.projections import To, VectorProjection

Make = Callable[[], list[Module]]

# A name, our modules but for LR, and torch's optimizer.
METHODS: dict[str, tuple[Make, Callable[..., torch.optim.Optimizer]]] = {
    "adam": (lambda: [Adam()], torch.optim.Adam),
    "adam amsgrad": (lambda: [Adam(amsgrad=True)], partial(torch.optim.Adam, amsgrad=True)),
    "adam coupled decay": (
        lambda: [WeightDecay(0.1), Adam((0.8, 0.95), 1e-3)],
        partial(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    "adamw": (lambda: [AdamW()], torch.optim.AdamW),
    "adamw amsgrad": (
        lambda: [AdamW((0.0, 0.9), 1e-4, 0.2, amsgrad=True)],
        partial(torch.optim.AdamW, betas=(0.0, 0.9), eps=1e-4, weight_decay=0.2, amsgrad=True),
    ),
    "adam decoupled decay": (
        lambda: [Adam(), WeightDecay(0.1)],
        partial(torch.optim.AdamW, weight_decay=0.1),
    ),
    "rmsprop": (lambda: [RMSprop()], torch.optim.RMSprop),
    "rmsprop centered": (
        lambda: [RMSprop(0.9, 1e-4, centered=True)],
        partial(torch.optim.RMSprop, alpha=0.9, eps=1e-4, centered=True),
    ),
    "rmsprop momentum": (
        lambda: [WeightDecay(0.1), RMSprop(momentum=0.9)],
        partial(torch.optim.RMSprop, momentum=0.9, weight_decay=0.1),
    ),
    "rmsprop centered momentum": (
        lambda: [RMSprop(centered=True, momentum=0.5)],
        partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    ),
    "adagrad": (lambda: [Adagrad()], torch.optim.Adagrad),
    "adagrad lr decay": (
        lambda: [WeightDecay(0.1), Adagrad(0.05, 0.3, 1e-6)],
        partial(
            torch.optim.Adagrad,
            lr_decay=0.05,
            initial_accumulator_value=0.3,
            eps=1e-6,
            weight_decay=0.1,
        ),
    ),
}


def place_all(place: Any, modules: Sequence[Module]) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, *place(modules))


@pytest.fixture(scope="module")
def torchs() -> Callable[..., Any]:
    """Torch's own trajectory, computed once for all places."""
    return cache(lambda follow, name, dtype: follow(partial(METHODS[name][1], lr=0.02), dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", METHODS)
def test_200_steps(
    name: str, dtype: torch.dtype, place: Any, follow: Any, same: Any, torchs: Any
) -> None:
    ours = follow(place_all(place, [*METHODS[name][0](), LR(0.02)]), dtype)
    same(ours, torchs(follow, name, dtype))


@pytest.mark.parametrize("name", METHODS)
def test_complex_numbers_as_pairs(
    name: str, complex_place: Any, follow: Any, same: Any, torchs: Any
) -> None:
    ours = follow(place_all(complex_place, [*METHODS[name][0](), LR(0.02)]), torch.complex128)
    same(ours, torchs(follow, name, torch.complex128))


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: 0.99**step, lambda step: 1 / (1 + step)]
    ),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.05, 0.1], total_steps=81, base_momentum=0.8, max_momentum=0.99
    ),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30),
}


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
@pytest.mark.parametrize("name", ["adamw", "rmsprop momentum"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_and_schedules(name: str, schedule: str, place: Any, follow: Any, same: Any) -> None:
    modules, theirs = METHODS[name]
    groups: list[dict[str, Any]] = [{"lr": 0.03}, {"eps": 1e-2}]
    how = {"groups": groups, "schedule": SCHEDULES[schedule], "steps": 80}
    ours = follow(place_all(place, [*modules(), LR(0.02)]), **how)
    same(ours, follow(partial(theirs, lr=0.02), **how))


def test_schedules_change_the_trajectory(follow: Any) -> None:
    # The oracle above would say nothing if betas were not cycled.
    def make(params: Any) -> Optimizer:
        return Optimizer(params, VectorProjection([Adam(), LR(0.02)]))

    def one_cycle(cycle_momentum: bool) -> Callable[[torch.optim.Optimizer], Any]:
        return lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.05, total_steps=31, cycle_momentum=cycle_momentum
        )

    cycled = follow(make, steps=30, schedule=one_cycle(True))
    fixed = follow(make, steps=30, schedule=one_cycle(False))
    assert float((cycled - fixed).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["adam", "adamw amsgrad", "rmsprop momentum", "adagrad lr decay"])
def test_large_tensors(name: str) -> None:
    # Large enough to be run piece by piece.
    modules, theirs = METHODS[name]
    start = torch.randn(700, 300, generator=torch.Generator().manual_seed(0))
    ours, reference = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizers = [
        Optimizer([ours], To([*modules(), LR(0.02)], "float64")),
        theirs([reference], lr=0.02),
    ]
    for _ in range(4):
        for parameter, optimizer in zip((ours, reference), optimizers, strict=True):
            parameter.grad = parameter.detach().cos()
            optimizer.step()
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_gradients_that_come_and_go(follow: Any) -> None:
    def run(make: Callable[[Any], torch.optim.Optimizer]) -> list[torch.Tensor]:
        params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimizer = make(params)
        for step in range(20):
            for i, param in enumerate(params):
                absent = step % (i + 2) == 0
                param.grad = None if absent else param.detach() + step
            optimizer.step()
        return [param.detach() for param in params]

    ours = run(lambda params: Optimizer(params, VectorProjection([Adam()]), LR(0.1)))
    theirs = run(lambda params: torch.optim.Adam(params, lr=0.1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
