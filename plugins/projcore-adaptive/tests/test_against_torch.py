"""Each method follows torch.optim's own trajectory, bare and inside projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch

from projcore import Module, Optimizer
from projcore.modules import (
    LR,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamMini,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    WeightDecay,
)
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
        lambda: [RMSprop(alpha=0.9, eps=1e-4, centered=True)],
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
        lambda: [WeightDecay(0.1), Adagrad(lr_decay=0.05, initial_accumulator_value=0.3, eps=1e-6)],
        partial(
            torch.optim.Adagrad,
            lr_decay=0.05,
            initial_accumulator_value=0.3,
            eps=1e-6,
            weight_decay=0.1,
        ),
    ),
    "nadam": (lambda: [NAdam()], torch.optim.NAdam),
    "nadam coupled decay": (
        lambda: [WeightDecay(0.1), NAdam((0.8, 0.95), 1e-3, 0.1)],
        partial(
            torch.optim.NAdam, betas=(0.8, 0.95), eps=1e-3, momentum_decay=0.1, weight_decay=0.1
        ),
    ),
    "nadam decoupled decay": (
        lambda: [NAdam(), WeightDecay(0.1)],
        partial(torch.optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "radam": (lambda: [RAdam()], torch.optim.RAdam),
    "radam coupled decay": (
        lambda: [WeightDecay(0.1), RAdam((0.8, 0.95), 1e-3)],
        partial(torch.optim.RAdam, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    "radam decoupled decay": (
        lambda: [RAdam((0.9, 0.9)), WeightDecay(0.1)],
        partial(torch.optim.RAdam, betas=(0.9, 0.9), weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "radam never rectified": (
        lambda: [RAdam((0.9, 0.5))],
        partial(torch.optim.RAdam, betas=(0.9, 0.5)),
    ),
    "adamax": (lambda: [Adamax()], torch.optim.Adamax),
    "adamax coupled decay": (
        lambda: [WeightDecay(0.1), Adamax((0.8, 0.95), 1e-3)],
        partial(torch.optim.Adamax, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    "adadelta": (lambda: [Adadelta()], torch.optim.Adadelta),
    "adadelta coupled decay": (
        lambda: [WeightDecay(0.1), Adadelta(rho=0.7, eps=1e-2)],
        partial(torch.optim.Adadelta, rho=0.7, eps=1e-2, weight_decay=0.1),
    ),
    "rprop": (lambda: [Rprop(0.02)], torch.optim.Rprop),
    "rprop bounds": (
        lambda: [Rprop(0.02, (0.7, 1.5), (0.01, 0.1))],
        partial(torch.optim.Rprop, etas=(0.7, 1.5), step_sizes=(0.01, 0.1)),
    ),
}


def modules_of(name: str) -> list[Module]:
    """A method's modules, and the learning rate unless it has its own."""
    modules = METHODS[name][0]()
    return modules if name.startswith("rprop") else [*modules, LR(0.02)]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Where torch keeps numbers in the default dtype, as NAdam's product."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype.to_real())
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def place_all(place: Any, modules: Sequence[Module]) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, *place(modules))


@pytest.fixture(scope="module")
def torchs() -> Callable[..., Any]:
    """Torch's own trajectory, computed once for all places."""

    @cache
    def run(follow: Callable[..., Any], name: str, dtype: torch.dtype) -> Any:
        with default_dtype(dtype):
            return follow(partial(METHODS[name][1], lr=0.02), dtype)

    return run


@pytest.mark.parametrize("name", METHODS)
def test_200_steps(name: str, place: Any, follow: Any, same: Any, torchs: Any) -> None:
    ours = follow(place_all(place, modules_of(name)))
    same(ours, torchs(follow, name, torch.float64))


@pytest.mark.parametrize("name", METHODS)
def test_float32(name: str, follow: Any, same: Any, torchs: Any) -> None:
    ours = follow(place_all(list, modules_of(name)), torch.float32)
    same(ours, torchs(follow, name, torch.float32))


@pytest.mark.parametrize("name", METHODS)
def test_complex_numbers_as_pairs(
    name: str, complex_place: Any, follow: Any, same: Any, torchs: Any
) -> None:
    ours = follow(place_all(complex_place, modules_of(name)), torch.complex128)
    same(ours, torchs(follow, name, torch.complex128))


MINI: dict[str, tuple[Make, Callable[..., torch.optim.Optimizer]]] = {
    "adam_mini": (lambda: [AdamMini()], torch.optim.Adam),
    "adam_mini row": (lambda: [AdamMini(block="row")], torch.optim.Adam),
}


@pytest.mark.parametrize("name", [*METHODS, *MINI])
@pytest.mark.parametrize("size", [1e15, 1e19, 1e20, 1e25])
def test_gradients_whose_squares_overflow(name: str, size: float) -> None:
    """What torch keeps finite stays finite here."""
    made, theirs = (METHODS | MINI)[name]
    sign = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    ends = []
    for make in (
        lambda params: Optimizer(params, *made(), LR(0.01)),
        lambda params: theirs(params, lr=0.01),
    ):
        weight = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = make([weight])
        for scale in (size, size, 1.0):
            weight.grad = scale * sign
            optimizer.step()
        ends.append(bool(weight.isfinite().all()))
    assert ends[0] or not ends[1]


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: 0.99**step, lambda step: 1 / (1 + step)]
    ),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.05, 0.1], total_steps=81, base_momentum=0.8, max_momentum=0.99
    ),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30),
}


@pytest.mark.pairwise
@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
@pytest.mark.parametrize("name", ["adamw", "rmsprop momentum", "nadam", "radam", "adamax"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_and_schedules(name: str, schedule: str, place: Any, follow: Any, same: Any) -> None:
    groups: list[dict[str, Any]] = [{"lr": 0.03}, {"eps": 1e-2}]
    how = {"groups": groups, "schedule": SCHEDULES[schedule], "steps": 80}
    ours = follow(place_all(place, modules_of(name)), **how)
    with default_dtype(torch.float64):
        same(ours, follow(partial(METHODS[name][1], lr=0.02), **how))


@pytest.mark.pairwise
@pytest.mark.parametrize("schedule", ["lambda", "cosine"])
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("adadelta", [{"lr": 0.5, "rho": 0.5}, {"eps": 1e-2}]),
        ("rprop", [{"lr": 0.5, "etas": (0.6, 1.3)}, {"step_sizes": (1e-3, 1e-1)}]),
    ],
)
def test_groups_of_others(
    name: str, groups: Any, schedule: str, place: Any, follow: Any, same: Any
) -> None:
    how = {"groups": groups, "schedule": SCHEDULES[schedule], "steps": 80}
    ours = follow(place_all(place, modules_of(name)), **how)
    same(ours, follow(partial(METHODS[name][1], lr=0.02), **how))


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


@pytest.mark.parametrize(
    "name",
    ["adam", "adamw amsgrad", "rmsprop momentum", "adagrad lr decay", "nadam", "radam", "rprop"],
)
def test_large_tensors(name: str) -> None:
    # Large enough to be run piece by piece.
    start = torch.randn(700, 300, generator=torch.Generator().manual_seed(0))
    ours, reference = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizers = [
        Optimizer([ours], To(modules_of(name), "float64")),
        METHODS[name][1]([reference], lr=0.02),
    ]
    for _ in range(4):
        for parameter, optimizer in zip((ours, reference), optimizers, strict=True):
            parameter.grad = parameter.detach().cos()
            optimizer.step()
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "nadam", "radam", "adamax", "rprop"])
def test_gradients_that_come_and_go(name: str) -> None:
    def run(make: Callable[[Any], torch.optim.Optimizer]) -> list[torch.Tensor]:
        params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimizer = make(params)
        for step in range(20):
            for i, param in enumerate(params):
                absent = step % (i + 2) == 0
                param.grad = None if absent else param.detach() + step
            optimizer.step()
        return [param.detach() for param in params]

    ours = run(lambda params: Optimizer(params, VectorProjection(modules_of(name))))
    with default_dtype(torch.float64):
        theirs = run(lambda params: METHODS[name][1](params, lr=0.02))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
