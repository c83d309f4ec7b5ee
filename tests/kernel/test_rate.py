"""The learning rate of an optimizer whose modules have none; and what is told of such ones."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from projcore import Optimizer
from projcore.engine.plan import Rate
from projcore.errors import ArgumentTypeError, StepSizeWarning
from projcore.modules import (
    LBFGS,
    LR,
    Adam,
    ClipNorm,
    Freeze,
    GradientAccumulation,
    HeavyBall,
    PolyakAveraging,
    Route,
    Scale,
    StrongWolfe,
    TorchOptim,
    WeightDecay,
)
from projcore.projections import LowRank, To, VectorProjection

# What has no rate, beside the same with one where it belongs.
PAIRS: dict[str, tuple[Callable[[], list[Any]], Callable[[float], list[Any]]]] = {
    "adam": (lambda: [Adam()], lambda r: [Adam(), LR(r)]),
    "decay behind": (
        lambda: [Adam(), WeightDecay(0.1)],
        lambda r: [Adam(), WeightDecay(0.1), LR(r)],
    ),
    "shared": (
        lambda: [LR(0.5), VectorProjection([LR(0.25)])],
        lambda r: [LR(0.5), VectorProjection([LR(0.25)]), LR(r)],
    ),
    "merged": (
        lambda: [VectorProjection([ClipNorm(1.0), HeavyBall(0.9)])],
        lambda r: [VectorProjection([ClipNorm(1.0), HeavyBall(0.9)]), LR(r)],
    ),
    "low rank": (
        lambda: [LowRank([Adam()], rank=2, period=2)],
        lambda r: [LowRank([Adam()], rank=2, period=2), LR(r)],
    ),
    "an average": (
        lambda: [Adam(), PolyakAveraging(0.5)],
        lambda r: [Adam(), LR(r), PolyakAveraging(0.5)],
    ),
    "an average alone": (
        lambda: [PolyakAveraging(0.5)],
        lambda r: [LR(r), PolyakAveraging(0.5)],
    ),
    "an average in a vector": (
        lambda: [VectorProjection([ClipNorm(1.0), PolyakAveraging(0.5)])],
        lambda r: [VectorProjection([ClipNorm(1.0), LR(r), PolyakAveraging(0.5)])],
    ),
    "master copies": (
        lambda: [To([Adam()], "float64", master=True)],
        lambda r: [To([Adam(), LR(r)], "float64", master=True)],
    ),
    "an average of master copies": (
        lambda: [To([Adam(), PolyakAveraging(0.5)], "float64", master=True)],
        lambda r: [To([Adam(), LR(r), PolyakAveraging(0.5)], "float64", master=True)],
    ),
    "accumulated": (
        lambda: [GradientAccumulation([Adam(), PolyakAveraging(0.5)], period=2)],
        lambda r: [GradientAccumulation([Adam(), LR(r), PolyakAveraging(0.5)], period=2)],
    ),
    "routed": (
        lambda: [Route({"ndim==2": [Adam(), PolyakAveraging(0.5)], "*": HeavyBall(0.9)})],
        lambda r: [
            Route({"ndim==2": [Adam(), LR(r), PolyakAveraging(0.5)], "*": [HeavyBall(0.9), LR(r)]})
        ],
    ),
}
FACTORS = [1.0, 0.5, 0.25, 2.0, 0.0]


def entries(optimizer: Optimizer) -> list[Tensor]:
    """The memory, without the positions, which a module more shifts."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = ["exp_avg", "exp_avg_sq", "momentum_buffer", "average", "master", "total"]
    found = [optimizer.state.get(p, {}) for p in params]
    return [each[key] for each in found for key in sorted(each) if key.split("/")[-1] in names]


@pytest.mark.parametrize("case", PAIRS)
def test_it_scales_the_whole_step(case: str, make: Any, run: Any, same: Any) -> None:
    """Bit by bit as a module that is told the same rates; powers of two scale without rounding."""
    bare, told = PAIRS[case]
    single = torch.float32
    optimizer = Optimizer(make(dtype=single), *bare())
    other = Optimizer(make(dtype=single), *told(1.0))
    assert optimizer.rate_is_factor
    # Of several rates, those that are 1 were added.
    qualified = [k for k, v in other.param_groups[0].items() if k.endswith(".lr") and v == 1.0]
    keys = qualified if other.rate_is_factor else ["lr"]
    for step, factor in enumerate(FACTORS):
        optimizer.param_groups[0]["lr"] = factor
        for each in keys:
            other.param_groups[0][each] = factor
        run(optimizer, range(step, step + 1))
        run(other, range(step, step + 1))
        assert same(optimizer.param_groups[0]["params"], other.param_groups[0]["params"])
    assert same(entries(optimizer), entries(other))


@pytest.mark.parametrize("case", PAIRS)
def test_a_factor_of_one_is_no_factor(
    case: str, make: Any, run: Any, same: Any, monkeypatch: Any
) -> None:
    """Bit by bit, and no tensor is multiplied; the key is in no expression and in no memory."""
    multiplied = []

    def apply(self: Rate, *args: Any) -> list[Tensor]:
        multiplied.append(self)
        return plain(self, *args)

    plain = Rate.apply
    monkeypatch.setattr(Rate, "apply", apply)
    optimizer = Optimizer(make(), *PAIRS[case][0]())
    assert "lr(1.0)" not in str(optimizer)
    run(optimizer, range(2))
    # A module that runs others by itself hands on what they make, with no numbers beside it.
    assert bool(multiplied) == (case == "accumulated")
    optimizer.param_groups[0]["lr"] = torch.tensor(1.0, dtype=torch.float64)
    other = Optimizer(make(), *PAIRS[case][0]())
    run(other, range(2))
    saved = other.state_dict()
    assert saved["state"].keys() == optimizer.state_dict()["state"].keys()
    run(optimizer, range(2, 4))
    run(other, range(2, 4))
    assert same(optimizer.param_groups[0]["params"], other.param_groups[0]["params"])
    for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert one.keys() == two.keys()


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.5**k),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=8, cycle_momentum=False),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_schedules(schedule: str, compile: bool, make: Any, run: Any) -> None:
    optimizer = Optimizer(make((3, 2)), VectorProjection([HeavyBall(0.5)]), compile=compile)
    other = Optimizer(make((3, 2)), VectorProjection([HeavyBall(0.5)]), LR(1.0))
    schedules = [SCHEDULES[schedule](each) for each in (optimizer, other)]
    for step in range(5):
        for each, scheduler in zip((optimizer, other), schedules, strict=True):
            run(each, range(step, step + 1))
            scheduler.step()
    one, two = (each.param_groups[0]["params"] for each in (optimizer, other))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_line_search_that_is_annealed(make: Any) -> None:
    (weight,) = make((3,))
    optimizer = Optimizer([weight], VectorProjection([LBFGS(), StrongWolfe()]))
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    schedule.step()
    schedule.step()
    before = weight.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)


def test_groups_differ_and_copies_keep_it(make: Any, run: Any, same: Any) -> None:
    params, others = make((3, 2), (4,)), make((3, 2), (4,))
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    optimizer = Optimizer(groups, Adam())
    rated = [{"params": others[:1], "lr": 0.5}, {"params": others[1:]}]
    other = Optimizer(rated, Adam(), LR(1.0))
    for copied in (optimizer, pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert [group["lr"] for group in copied.param_groups] == [0.5, 1.0]
    run(optimizer, range(3))
    run(other, range(3))
    assert same(params, others)
    again = Optimizer([{"params": make((3, 2))}, {"params": make((4,))}], Adam())
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.5, 1.0]


def test_checkpoints_from_before_it_was_there(make: Any, run: Any) -> None:
    optimizer = Optimizer(make(), Adam())
    run(optimizer, range(1))
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 1.0


RATED: dict[str, tuple[Callable[[], list[Any]], str | None]] = {
    "adam": (lambda: [Adam()], "nothing sets the step size"),
    "momentum": (lambda: [HeavyBall(0.9), ClipNorm(1.0)], "nothing sets the step size"),
    "adam in a subspace": (lambda: [LowRank([Adam()], rank=2)], "nothing sets"),
    "lr before adam": (lambda: [LR(0.1), Adam()], "stands before a module"),
    "lr before a subspace": (lambda: [LR(0.1), LowRank([Adam()], rank=2)], "stands before"),
    "on one route": (
        lambda: [Route({"ndim==2": [Adam(), LR(0.1)], "*": [Adam()]})],
        "stands before a module",
    ),
    "on both routes": (
        lambda: [Route({"ndim==2": [Adam(), LR(0.1)], "*": [Adam(), LR(0.1)]})],
        None,
    ),
    "behind routes": (lambda: [Route({"ndim==2": [Adam()], "*": [HeavyBall()]}), LR(0.1)], None),
    "one is frozen": (lambda: [Route({"ndim==2": [Freeze()], "*": [Adam(), LR(0.1)]})], None),
    "as torch": (lambda: [Adam(), LR(0.1)], None),
    "an average behind": (lambda: [Adam(), LR(0.1), PolyakAveraging()], None),
    "decay behind": (lambda: [Adam(), LR(0.1), WeightDecay(0.1)], None),
    "a constant": (lambda: [HeavyBall(0.9), Scale(0.1)], None),
    "torch's": (lambda: [TorchOptim("Adam", {"lr": 0.1})], None),
    "a line search": (lambda: [VectorProjection([LBFGS(), StrongWolfe()])], None),
    "curvature": (lambda: [VectorProjection([LBFGS()])], None),
}


@pytest.mark.parametrize("case", RATED)
def test_nothing_sets_a_step_size(case: str, make: Any) -> None:
    chain, message = RATED[case]
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", StepSizeWarning)
            Optimizer(make(), *chain())
        return
    with pytest.warns(StepSizeWarning, match=rf"(?s){message}.*LR\(1e-3\)"):
        Optimizer(make(), *chain())


def test_groups_that_give_it_need_no_warning(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", StepSizeWarning)
        Optimizer([{"params": make(), "lr": 1e-3}], Adam())


SWALLOWED: dict[str, tuple[Callable[[], Any], str]] = {
    "a module": (lambda: VectorProjection(Adam(), LR(1e-3)), r"VectorProjection\(\[adam\(\), lr"),
    "a spec": (lambda: VectorProjection("adam()", "lr(1e-3)"), r"Projection\(\['adam\(\)', 'lr"),
    "a list": (lambda: VectorProjection(Adam(), [LR(1e-3)]), "It is True or False"),
    "a class": (lambda: VectorProjection(Adam(), LR), "It is True or False"),
    "behind a list": (
        lambda: VectorProjection([ClipNorm(1.0), Adam()], LR(1e-3)),
        r"\(\[clip_norm\(1.0\), adam\(\), lr\(0.001\)\]\)",
    ),
    "for a number": (lambda: LowRank(Adam(), LR(1e-3)), r"rank=.*LowRank\(\[adam\(\), lr"),
    "by name": (lambda: VectorProjection(Adam(), project_grad=LR(0.1)), "project_grad=lr"),
    "not beside modules": (lambda: HeavyBall(0.9, nesterov=LR(0.1)), "nesterov=False, or leave"),
    "in a spec": (lambda: Optimizer([torch.ones(2)], "vector(adam(), lr(0.1))"), "It is True"),
}


@pytest.mark.parametrize("case", SWALLOWED)
def test_a_module_where_a_flag_belongs(case: str) -> None:
    call, message = SWALLOWED[case]
    with pytest.raises((ArgumentTypeError, ValueError), match=message):
        call()
