"""HeavyBall, WeightDecay and LR follow torch.optim.SGD in all its variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch

from projcore import Module, Optimizer
from projcore.modules import LR, Adam, HeavyBall, WeightDecay

Make = Callable[[], list[Module]]

# Our modules but for LR, and what torch.optim.SGD is given.
VARIANTS: dict[str, tuple[Make, dict[str, Any]]] = {
    "plain": (lambda: [], {}),
    "decay": (lambda: [WeightDecay(0.1)], {"weight_decay": 0.1}),
    "momentum": (lambda: [HeavyBall(0.9)], {"momentum": 0.9}),
    "dampening": (lambda: [HeavyBall(0.8, 0.3)], {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (lambda: [HeavyBall(0.9, nesterov=True)], {"momentum": 0.9, "nesterov": True}),
    "dampening, decay": (
        lambda: [WeightDecay(0.1), HeavyBall(0.8, 0.3)],
        {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    ),
    "nesterov, decay": (
        lambda: [WeightDecay(0.1), HeavyBall(0.9, nesterov=True)],
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
}


def place_all(place: Any, modules: Sequence[Module]) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, *place(modules))


@pytest.fixture(scope="module")
def torchs() -> Callable[..., Any]:
    """Torch's own trajectory, computed once for all places."""
    return cache(
        lambda follow, name, dtype: follow(
            partial(torch.optim.SGD, lr=0.05, **VARIANTS[name][1]), dtype
        )
    )


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_200_steps(
    name: str, dtype: torch.dtype, place: Any, follow: Any, same: Any, torchs: Any
) -> None:
    ours = follow(place_all(place, [*VARIANTS[name][0](), LR(0.05)]), dtype)
    same(ours, torchs(follow, name, dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_complex_numbers(
    name: str, complex_place: Any, follow: Any, same: Any, torchs: Any
) -> None:
    ours = follow(place_all(complex_place, [*VARIANTS[name][0](), LR(0.05)]), torch.complex128)
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


@pytest.mark.pairwise
@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
@pytest.mark.parametrize("name", ["momentum", "nesterov, decay"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_and_schedules(name: str, schedule: str, place: Any, follow: Any, same: Any) -> None:
    modules, options = VARIANTS[name]
    groups: list[dict[str, Any]] = [{"lr": 0.03}, {"momentum": 0.5}]
    how = {"groups": groups, "schedule": SCHEDULES[schedule], "steps": 80}
    ours = follow(place_all(place, [*modules(), LR(0.05)]), **how)
    same(ours, follow(partial(torch.optim.SGD, lr=0.05, **options), **how))


def test_first_gradient_after_some_steps() -> None:
    # Dampening starts with the second gradient of each parameter, not with the second step.
    def run(make: Callable[[Any], torch.optim.Optimizer]) -> list[torch.Tensor]:
        params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimizer = make(params)
        for step in range(5):
            params[0].grad = params[0].detach() + step
            params[1].grad = params[1].detach() + step if step > 2 else None
            optimizer.step()
        return [param.detach() for param in params]

    ours = run(lambda params: Optimizer(params, HeavyBall(0.9, 0.5), LR(0.1)))
    theirs = run(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_decay_is_coupled_or_decoupled_by_its_place(follow: Any, same: Any) -> None:
    def ours(*modules: Module) -> Any:
        return follow(lambda params: Optimizer(params, *modules))

    coupled = follow(partial(torch.optim.Adam, lr=0.02, weight_decay=0.3))
    same(ours(WeightDecay(0.3), Adam(), LR(0.02)), coupled)
    decoupled = follow(partial(torch.optim.AdamW, lr=0.02, weight_decay=0.3))
    same(ours(Adam(), WeightDecay(0.3), LR(0.02)), decoupled)
    independent = follow(partial(torch.optim.AdamW, lr=0.02, weight_decay=0.3 / 0.02))
    same(ours(Adam(), LR(0.02), WeightDecay(0.3)), independent)


def test_no_decay_returns_the_update_itself() -> None:
    weight = torch.full((2,), torch.inf, requires_grad=True)
    weight.grad = torch.ones(2)
    Optimizer([weight], WeightDecay(0.0), LR(0.1)).step()
    assert weight.isinf().all()


def test_learning_rate_as_a_tensor() -> None:
    rate = torch.tensor(0.5)
    weight = torch.ones(2, requires_grad=True)
    optimizer = Optimizer([weight], LR(rate))
    weight.grad = torch.ones(2)
    optimizer.step()
    rate.fill_(0.25)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.25), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_learning_rates_as_tensors_that_schedulers_fill(
    place: Any, follow: Any, same: Any, dtype: torch.dtype
) -> None:
    def how() -> dict[str, Any]:
        rates = [torch.tensor(rate, dtype=dtype) for rate in (0.03, 0.1)]
        return {
            "groups": [{"lr": rate} for rate in rates],
            "schedule": SCHEDULES["cosine"],
            "dtype": dtype,
        }

    modules, options = VARIANTS["nesterov, decay"]
    ours = follow(place_all(place, [*modules(), LR(0.05)]), **how())
    reference = partial(torch.optim.SGD, lr=0.05, foreach=False, **options)
    same(ours, follow(reference, **how()))
