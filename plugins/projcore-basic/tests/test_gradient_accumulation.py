"""Steps on micro-batches are one on all of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from projcore import Entries, Module, Optimizer, ProjectionBase, Settings, Transform
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import (
    EMA,
    LR,
    Adam,
    Cautious,
    ClipNorm,
    GradientAccumulation,
    HeavyBall,
    Sign,
)
from projcore.projections import To, VectorProjection

SHAPES: list[tuple[int, ...]] = [(4, 3), (5,), (), (0, 2)]


def parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=random, dtype=dtype).requires_grad_() for s in SHAPES]


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random, dtype=dtype) for s in SHAPES]


def micro_steps(make: Callable[[Any], torch.optim.Optimizer], count: int, period: int) -> Tensor:
    """Takes a step on each of ``count * period`` gradients."""
    params = parameters()
    optimizer = make(params)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.8)
    points = []
    for step in range(count):
        for k in range(period):
            for param, noise in zip(params, gradients(step * period + k), strict=True):
                param.grad = param.detach() - 1 + noise
            optimizer.step()
        scheduler.step()
        points.append(torch.cat([param.detach().reshape(-1) for param in params]))
    return torch.stack(points)


def full_steps(count: int, period: int, limit: float | None, mean: bool = True) -> Tensor:
    """Takes torch's clipped Adam on the mean of each `period` gradients."""
    params = parameters()
    optimizer = torch.optim.Adam(params, lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.8)
    points = []
    for step in range(count):
        optimizer.zero_grad()
        for k in range(period):
            for param, noise in zip(params, gradients(step * period + k), strict=True):
                grad = (param.detach() - 1 + noise) / (period if mean else 1)
                param.grad = grad if param.grad is None else param.grad + grad
        if limit is not None:
            clip_grad_norm_(params, limit)
        optimizer.step()
        scheduler.step()
        points.append(torch.cat([param.detach().reshape(-1) for param in params]))
    return torch.stack(points)


@pytest.mark.pairwise
@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("mean", [True, False])
def test_steps_on_micro_batches_are_one_on_all(
    place: Any, place_name: str, same: Any, period: int, mean: bool
) -> None:
    clip = place_name in ("bare", "vector", "to")
    modules: list[Module] = [ClipNorm(0.5)] if clip else []
    inner = GradientAccumulation([*modules, Adam(), LR(0.05)], period, mean)
    ours = micro_steps(lambda params: Optimizer(params, *place([inner])), 50, period)
    same(ours, full_steps(50, period, 0.5 if clip else None, mean))


def test_projections_inside(same: Any) -> None:
    inner = VectorProjection([ClipNorm(0.5, per_tensor=True), Adam()])
    ours = micro_steps(
        lambda params: Optimizer(params, GradientAccumulation([inner, LR(0.05)], 3)), 50, 3
    )
    same(ours, full_steps(50, 3, 0.5))


class Turned(ProjectionBase):
    """Turns vectors of two so that the update at the first step points along the first axis."""

    scope = "tensor"

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries | None]:
        new: list[Entries | None] = []
        for tensor, state in zip(tensors, states, strict=True):
            x, y = tensor / tensor.norm()
            turn = torch.stack([torch.stack([x, -y]), torch.stack([y, x])])
            new.append(None if "turn" in state else {"turn": turn})
        return new

    def project(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        states = facts[3]
        return [state["turn"].T @ x for state, x in zip(states, tensors, strict=True)]

    def unproject(self, projected_tensors: Any, *facts: Any) -> list[Tensor]:
        states = facts[3]
        return [state["turn"] @ x for state, x in zip(states, projected_tensors, strict=True)]


@pytest.mark.parametrize(
    ("inner", "dtype"),
    [
        (lambda: Turned([Adam(), LR(0.1)]), torch.float64),
        (lambda: To([Adam(), LR(1e-4)], "float32", master=True), torch.bfloat16),
    ],
    ids=["learnt", "master copies"],
)
def test_projections_inside_see_the_mean(inner: Any, dtype: torch.dtype) -> None:
    accumulated, full = (torch.ones(2, dtype=dtype, requires_grad=True) for _ in range(2))
    optimizer = Optimizer([accumulated], GradientAccumulation([inner()], 2))
    reference = Optimizer([full], inner())
    for step in range(20):
        # Numbers whose mean has no rounding.
        pair = [torch.tensor([8.0, 1.0 + step % 3], dtype=dtype), torch.zeros(2, dtype=dtype)]
        for grad in pair:
            accumulated.grad = grad
            optimizer.step()
        full.grad = pair[0] / 2
        reference.step()
        # Where a map comes last, it is applied to the scaled update, which rounds differently.
        rounding = 0.0 if dtype is torch.bfloat16 else 1e-14
        torch.testing.assert_close(accumulated, full, rtol=rounding, atol=rounding)
    assert not accumulated.equal(torch.ones(2, dtype=dtype))


def take(optimizer: Optimizer, params: list[Tensor], steps: range, missing: Any = ()) -> None:
    for step in steps:
        for i, (param, grad) in enumerate(
            zip(params, gradients(step, params[0].dtype), strict=True)
        ):
            param.grad = None if i in missing else grad
        optimizer.step()


def memory(optimizer: Optimizer, inside: bool) -> list[dict[str, Any]]:
    return [
        {key: copy.deepcopy(value) for key, value in entries.items() if inside is ("/0/" in key)}
        for entries in optimizer.state.values()
    ]


def test_nothing_moves_between() -> None:
    params = parameters()
    optimizer = Optimizer(params, GradientAccumulation([Adam(), LR(0.1)], 3))
    take(optimizer, params, range(3))
    points = [param.detach().clone() for param in params]
    kept = memory(optimizer, inside=True)
    assert all(len(entries) == 3 for entries in kept)
    for step in (3, 4):
        take(optimizer, params, range(step, step + 1))
        torch.testing.assert_close([p.detach() for p in params], points, rtol=0, atol=0)
        torch.testing.assert_close(memory(optimizer, inside=True), kept, rtol=0, atol=0)
    take(optimizer, params, range(5, 6))
    assert not params[0].equal(points[0])
    assert all(entries["0/modules/0/step"] == 2 for entries in memory(optimizer, inside=True))


def test_memory_inside_is_there_from_the_first_step() -> None:
    params = parameters()
    optimizer = Optimizer(params, GradientAccumulation([Adam(), LR(0.1)], 3))
    take(optimizer, params, range(1), missing={1})
    assert all("0/modules/0/exp_avg" in optimizer.state[param] for param in params)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["bare", "vector", "to"])
def test_resume_in_the_middle_is_bitwise(at: int, where: str) -> None:
    wrap: dict[str, Callable[[list[Any]], Any]] = {
        "bare": lambda modules: modules,
        "vector": lambda modules: VectorProjection(modules),
        "to": lambda modules: To(modules, "float32", master=True),
    }
    dtype = torch.bfloat16 if where == "to" else torch.float32

    def make() -> tuple[list[Tensor], Optimizer]:
        params = parameters(dtype)
        inner = GradientAccumulation([EMA(0.9), Cautious(), LR(0.1)], 3)
        return params, Optimizer(params, wrap[where]([ClipNorm(1.0), inner]))

    straight, optimizer = make()
    take(optimizer, straight, range(9))
    params, optimizer = make()
    take(optimizer, params, range(at))
    file = io.BytesIO()
    torch.save(([param.detach() for param in params], optimizer.state_dict()), file)
    file.seek(0)
    points, state = torch.load(file, weights_only=True)
    params, optimizer = make()
    with torch.no_grad():
        torch._foreach_copy_(params, points)
    optimizer.load_state_dict(state)
    take(optimizer, params, range(at, 9))
    torch.testing.assert_close(params, straight, rtol=0, atol=0)


def test_each_parameter_counts_its_own_gradients() -> None:
    # As if each had an optimizer of its own.
    missing = [set(), {0}, {1}, {0, 2}, set(), {0}, set(), {1, 2}, set(), set()]
    together, apart = parameters(), parameters()
    optimizer = Optimizer(together, GradientAccumulation([Adam(), LR(0.1)], 2))
    single = [Optimizer([p], GradientAccumulation([Adam(), LR(0.1)], 2)) for p in apart]
    for step, absent in enumerate(missing):
        for params in (together, apart):
            for i, (param, grad) in enumerate(zip(params, gradients(step), strict=True)):
                param.grad = None if i in absent else grad
        optimizer.step()
        for each in single:
            each.step()
        torch.testing.assert_close(together, apart, rtol=0, atol=0)
    counts = [optimizer.state[param]["0/modules/0/step"].item() for param in together]
    assert counts == [3, 4, 4, 5]  # of 7, 8, 8 and 10 gradients


def test_those_that_wait_are_without_a_gradient_inside() -> None:
    params = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inner = VectorProjection([ClipNorm(1.0)])
    optimizer = Optimizer(params, GradientAccumulation([inner], 2))
    for grads in ((3.0, None), (5.0, 100.0)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
    # The mean of 3 and 5, clipped without the 100 of the one that has to wait.
    assert params[0].item() == pytest.approx(-1, abs=1e-5)
    assert params[1].item() == 0
    params[0].grad, params[1].grad = None, torch.tensor([0.0], dtype=torch.float64)
    optimizer.step()
    assert params[1].item() == pytest.approx(-1, abs=1e-5)


def test_gradients_inside_are_the_mean() -> None:
    # Of the last gradient alone, the sign would be another.
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Optimizer([param], GradientAccumulation([Cautious(), LR(1.0)], 2))
    for grad in (3.0, -1.0):
        param.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
    assert param.item() == -0.5  # the mean is 1; one element of one is scaled by a half


def test_a_period_for_each_group() -> None:
    params = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [{"params": [params[0]], "period": 1}, {"params": [params[1]]}]
    optimizer = Optimizer(groups, GradientAccumulation([Sign(), LR(1.0)], 3))
    for _ in range(7):
        for param in params:
            param.grad = torch.ones(1)
        optimizer.step()
    assert [param.item() for param in params] == [-7, -2]


class Fault(Transform):
    """Raises while it is armed."""

    scope = "element"
    armed = False

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        if self.armed:
            raise KeyError
        return tensors


def test_a_step_that_failed_inside_can_be_taken_again() -> None:
    ends = []
    for fail in (False, True):
        params, fault = parameters(), Fault()
        inner = GradientAccumulation([fault, HeavyBall(0.9), LR(0.1)], 2)
        optimizer = Optimizer(params, inner)
        take(optimizer, params, range(3))
        if fail:
            fault.armed = True
            with pytest.raises(KeyError):
                take(optimizer, params, range(3, 4))
            fault.armed = False
        take(optimizer, params, range(3, 6))
        ends.append(params)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_a_group_added_in_the_middle() -> None:
    first, late = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = Optimizer([first], GradientAccumulation([Sign(), LR(1.0)], 2))
    first.grad = torch.ones(1)
    optimizer.step()
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(1)
    optimizer.step()
    assert (first.item(), late.item()) == (-1, 0)
    optimizer.step()
    assert (first.item(), late.item()) == (-1, -1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"modules": ["lr(0.1)"], "period": 0}, ArgumentError, "period=0"),
        ({"modules": ["lr(0.1)"], "period": 2.0}, ArgumentTypeError, "period must be an integer"),
        ({"modules": ["lr(0.1)"], "period": True}, ArgumentTypeError, "period=True"),
        ({"modules": ["backtracking()"], "period": 2}, ArgumentError, "one micro-batch only"),
        ({"modules": [], "period": 2}, ArgumentError, "no modules"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        GradientAccumulation(**arguments)


def test_what_comes_last_inside_comes_last() -> None:
    with pytest.raises(ArgumentError, match="reach the parameters unchanged"):
        Optimizer(parameters(), GradientAccumulation(["lr(0.1)", "polyak_averaging()"], 2), LR(0.1))


def test_it_runs_in_python_when_others_are_compiled() -> None:
    params = parameters()
    options = {"backend": "eager"}
    optimizer = Optimizer(params, GradientAccumulation([LR(0.1)], 2), compile=options)
    assert "run gradient_accumulation in Python" in optimizer.describe()
    take(optimizer, params, range(4))
