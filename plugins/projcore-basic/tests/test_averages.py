"""EMA against Adam's first half, and PolyakAveraging against torch's AveragedModel."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from projcore import Optimizer
from projcore.errors import ArgumentError, StepError
from projcore.modules import EMA, LR, Adam, GradientAccumulation, HeavyBall, PolyakAveraging, Sign
from projcore.projections import ScalarProjection, To, VectorProjection
from projcore.testing.parts import Mix
from projcore_basic import averaged, averages

# Adam whose denominator is eps, to the last bit, is a debiased mean times lr / eps.
HUGE = 1e30
MEAN = partial(torch.optim.Adam, betas=(0.9, 0.0), eps=HUGE)


class PlainMean(torch.optim.Optimizer):
    """The running mean that begins at zero."""

    def __init__(self, params: Any, lr: float, beta: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                mean = self.state[param].setdefault("mean", torch.zeros_like(param))
                mean.mul_(group["beta"]).add_(param.grad, alpha=1 - group["beta"])
                param.sub_(group["lr"] * mean)


def of(place: Any, *modules: Any) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, *place(list(modules)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_mean_is_the_first_half_of_adam(place: Any, follow: Any, same: Any, dtype: Any) -> None:
    ours = follow(of(place, EMA(0.9), LR(0.05)), dtype)
    same(ours, follow(partial(MEAN, lr=0.05 * HUGE), dtype))


def test_mean_without_correction(place: Any, follow: Any, same: Any) -> None:
    ours = follow(of(place, EMA(0.9, debias=False), LR(0.05)))
    same(ours, follow(partial(PlainMean, lr=0.05, beta=0.9)))


@pytest.mark.parametrize("debias", [True, False])
def test_mean_in_groups_with_a_schedule(place: Any, follow: Any, same: Any, debias: bool) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.8)

    unit = HUGE if debias else 1.0
    other = {"betas": (0.5, 0.0)} if debias else {"beta": 0.5}
    make: Any = MEAN if debias else partial(PlainMean, beta=0.9)
    ours = follow(
        of(place, EMA(0.9, debias), LR(0.05)),
        groups=[{"lr": 0.03}, {"beta": 0.5}],
        schedule=schedule,
    )
    theirs = follow(
        partial(make, lr=0.05 * unit), groups=[{"lr": 0.03 * unit}, other], schedule=schedule
    )
    same(ours, theirs)


def test_mean_of_complex_numbers(complex_place: Any, follow: Any, same: Any) -> None:
    ours = follow(of(complex_place, EMA(0.9), LR(0.05)), torch.complex128)
    same(ours, follow(partial(MEAN, lr=0.05 * HUGE), torch.complex128))


# PolyakAveraging.

KINDS: dict[str, tuple[float | None, dict[str, Any]]] = {
    "mean": (None, {}),
    "ema": (0.9, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}),
}


def small_model(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(
        dtype
    )


def backward(model: torch.nn.Module, step: int) -> None:
    parameter = next(model.parameters())
    inputs = torch.linspace(-1, 1, 15).reshape(5, 3).to(parameter.dtype) + step % 3
    model.zero_grad()
    model(inputs).square().mean().backward()


PLACES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "bare": lambda modules: modules,
    "vector": lambda modules: [VectorProjection(modules)],
    "scalars in a vector": lambda modules: [VectorProjection([ScalarProjection(modules)])],
    "accumulated": lambda modules: [GradientAccumulation(modules, 1)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", PLACES)
def test_averages_of_200_steps(kind: str, where: str) -> None:
    beta, options = KINDS[kind]
    ours, theirs = small_model(), small_model()
    modules = PLACES[where]([HeavyBall(0.9), LR(0.05), PolyakAveraging(beta)])
    optimizer = Optimizer(ours.parameters(), *modules)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    average = AveragedModel(theirs, **options)
    for step in range(200):
        for model in (ours, theirs):
            backward(model, step)
        optimizer.step()
        reference.step()
        average.update_parameters(theirs)
        if step % 40 > 1:
            continue
        found = averages(optimizer)
        for parameter, other in zip(ours.parameters(), average.parameters(), strict=True):
            torch.testing.assert_close(found[parameter], other, rtol=1e-12, atol=1e-12)


def run(optimizer: Optimizer, model: torch.nn.Module, steps: int) -> None:
    for step in range(steps):
        backward(model, step)
        optimizer.step()


@pytest.fixture
def model() -> torch.nn.Module:
    return small_model()


def test_averaged_puts_averages_in_and_parameters_back(model: torch.nn.Module) -> None:
    optimizer = Optimizer(model.parameters(), LR(0.1), PolyakAveraging())
    run(optimizer, model, 3)
    kept = [p.detach().clone() for p in model.parameters()]
    addresses = [p.data_ptr() for p in model.parameters()]
    found = averages(optimizer)
    assert not any(p.equal(found[p]) for p in model.parameters())
    with averaged(optimizer):
        for p in model.parameters():
            torch.testing.assert_close(p.detach(), found[p], rtol=0, atol=0)
    with pytest.raises(KeyError), averaged(optimizer):
        raise KeyError
    assert all(p.equal(k) for p, k in zip(model.parameters(), kept, strict=True))
    assert addresses == [p.data_ptr() for p in model.parameters()]
    assert all(p.requires_grad for p in model.parameters())


def test_copies_are_given_out(model: torch.nn.Module) -> None:
    optimizer = Optimizer(model.parameters(), LR(0.1), PolyakAveraging())
    run(optimizer, model, 2)
    for average in averages(optimizer).values():
        average.zero_()
    assert all(bool(average.any()) for average in averages(optimizer).values())


def test_a_step_inside_is_an_error(model: torch.nn.Module) -> None:
    optimizer = Optimizer(model.parameters(), LR(0.1), PolyakAveraging())
    run(optimizer, model, 2)
    kept = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(StepError, match="Take steps outside"), averaged(optimizer):
        run(optimizer, model, 1)
    assert all(p.equal(k) for p, k in zip(model.parameters(), kept, strict=True))


def test_averages_are_saved(model: torch.nn.Module) -> None:
    optimizer = Optimizer(model.parameters(), LR(0.1), PolyakAveraging(0.9))
    run(optimizer, model, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = small_model()
    loaded = Optimizer(other.parameters(), LR(0.1), PolyakAveraging(0.9))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    found = averages(loaded)
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found[p], averages(optimizer)[q], rtol=0, atol=0)


def test_parameters_without_a_gradient_are_their_own_average() -> None:
    params = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = Optimizer(params, LR(1.0), PolyakAveraging())
    for _ in range(2):
        params[0].grad = torch.ones(2)
        optimizer.step()
    found = averages(optimizer)
    torch.testing.assert_close(found[params[0]], torch.full((2,), -0.5))
    torch.testing.assert_close(found[params[1]], torch.ones(3))


def test_parameters_added_late() -> None:
    params = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = Optimizer(params[:1], LR(1.0), PolyakAveraging())
    params[0].grad = torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": params[1:]})
    assert averages(optimizer)[params[1]].equal(torch.ones(3))
    params[1].grad = torch.ones(3)
    optimizer.step()
    found = averages(optimizer)
    torch.testing.assert_close(found[params[0]], torch.full((2,), -0.5))
    torch.testing.assert_close(found[params[1]], torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_averages_of_other_dtypes(dtype: torch.dtype) -> None:
    param = torch.zeros(2, dtype=dtype, requires_grad=True)
    optimizer = Optimizer([param], LR(1.0), PolyakAveraging(0.999))
    for step in range(100):
        param.grad = torch.full((2,), -1.0 if step == 0 else 0.0, dtype=dtype)
        if step == 1:
            param.grad = torch.full((2,), -1.0, dtype=dtype)
        optimizer.step()
    # From 1 towards 2, which in bfloat16 it would not leave.
    expected = torch.full((2,), 2 - 0.999**99, dtype=averages(optimizer)[param].dtype)
    torch.testing.assert_close(averages(optimizer)[param], expected, rtol=1e-5, atol=0)
    with averaged(optimizer):
        torch.testing.assert_close(param.detach(), expected.to(dtype), rtol=0.01, atol=0)


def test_what_has_no_averages(model: torch.nn.Module) -> None:
    optimizer = Optimizer(model.parameters(), LR(0.1))
    with pytest.raises(ArgumentError, match="no module of which keeps an average"):
        averages(optimizer)
    inner = VectorProjection([LR(0.1), PolyakAveraging()], project_update=False)
    merged = Optimizer(model.parameters(), inner)
    run(merged, model, 1)
    with pytest.raises(ArgumentError, match="outside of all projections"):
        averages(merged)


def test_it_comes_last_and_where_points_are_kept() -> None:
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="lr"):
        Optimizer([weight], PolyakAveraging(), LR(0.1))
    with pytest.raises(ArgumentError, match="outside this projection"):
        Optimizer([weight], Mix([Sign(), PolyakAveraging()]))


def test_averages_of_master_copies() -> None:
    low = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    high = torch.ones(2, requires_grad=True)
    modules: list[Any] = [LR(1e-4), PolyakAveraging()]
    inside = Optimizer([low], To(modules, "float32", master=True))
    outside = Optimizer([high], *modules)
    for _ in range(10):
        low.grad, high.grad = torch.ones_like(low), torch.ones_like(high)
        inside.step()
        outside.step()
    found = averages(inside)[low]
    torch.testing.assert_close(found, averages(outside)[high], rtol=0, atol=0)
    with averaged(inside):
        torch.testing.assert_close(low.detach(), found.to(low.dtype), rtol=0, atol=0)


def test_averages_of_accumulated_steps() -> None:
    # Inside, only steps that move count.
    def end(*modules: Any, repeat: int) -> Tensor:
        param = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = Optimizer([param], *modules)
        for step in range(5):
            for _ in range(repeat):
                param.grad = torch.full((2,), 1.0 + step, dtype=torch.float64)
                optimizer.step()
        return averages(optimizer)[param]

    modules = [Adam(), LR(0.1), PolyakAveraging(0.5)]
    torch.testing.assert_close(
        end(GradientAccumulation(modules, 3), repeat=3),
        end(*modules, repeat=1),
        rtol=1e-14,
        atol=1e-14,
    )


def test_it_may_follow_what_is_final() -> None:
    """It reads the update and hands it on, also that of a master copy or a line search."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    inner = To([LR(0.1)], "float32", master=True)
    optimizer = Optimizer([weight], inner, PolyakAveraging())
    optimizer.step()
    optimizer.step()
    expected = [torch.ones(3) - 0.1 * step for step in (1, 2)]
    rounded = torch.stack([point.bfloat16().float() for point in expected]).mean(0)
    assert torch.equal(averages(optimizer)[weight], rounded)
