"""The switch that refuses or leaves out steps whose gradients are not finite."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer, errors
from projcore.modules import LR, Adam, Backtracking

BAD = [float("nan"), float("inf"), float("-inf")]


def build(**options: Any) -> tuple[list[Parameter], Optimizer]:
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(3)), Parameter(torch.ones(1))]
    return params, Optimizer(zip("abc", params, strict=True), Adam(), LR(0.1), **options)


def step(params: list[Parameter], optimizer: Optimizer, bad: float | None = None) -> None:
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    if bad is not None:
        params[1].grad[2] = bad
    optimizer.step()


def everything(params: list[Parameter], optimizer: Optimizer) -> list[torch.Tensor]:
    entries = [value for p in params for value in optimizer.state[p].values()]
    return [torch.as_tensor(each).detach().clone() for each in (*params, *entries)]


@pytest.mark.parametrize(("bad", "compiled"), [*((bad, False) for bad in BAD), (BAD[0], True)])
def test_raise_names_the_parameter_and_changes_nothing(bad: float, compiled: bool) -> None:
    params, optimizer = build(nonfinite="raise", compile=compiled)
    step(params, optimizer)
    before = everything(params, optimizer)
    with pytest.raises(errors.NonFiniteError, match=r"parameter 'b', of shape \(3,\).*'skip'"):
        step(params, optimizer, bad)
    assert all(map(torch.equal, before, everything(params, optimizer)))


@pytest.mark.parametrize("bad", BAD)
def test_skip_is_as_if_the_step_had_not_been(bad: float) -> None:
    (params, optimizer), (others, reference) = build(nonfinite="skip"), build()
    for each in (None, bad, None, bad, bad, None):
        step(params, optimizer, each)
    for _ in range(3):
        step(others, reference)
    for one, other in zip(
        everything(params, optimizer), everything(others, reference), strict=True
    ):
        assert torch.equal(one, other)


def test_allow_is_the_default_and_shows_what_happened() -> None:
    params, optimizer = build()
    step(params, optimizer, float("nan"))
    assert params[1].isnan().any()


def test_a_loss_that_is_not_finite_where_a_module_reads_it() -> None:
    param = Parameter(torch.ones(2))
    optimizer = Optimizer([param], Backtracking(), nonfinite="raise")

    def closure() -> torch.Tensor:
        param.grad = torch.ones(2)
        return torch.tensor(float("inf"))

    with pytest.raises(errors.NonFiniteError, match="The loss"):
        optimizer.step(closure)
    assert torch.equal(param, torch.ones(2))


def test_missing_gradients_and_gradients_beyond_the_range_of_squares_are_finite() -> None:
    params, optimizer = build(nonfinite="raise")
    params[0].grad = torch.full((2,), 1e30)
    optimizer.step()
    assert params[0].isfinite().all()


def test_other_words_are_refused_and_the_switch_outlives_a_pickle() -> None:
    with pytest.raises(errors.ArgumentError, match=r"nonfinite='ignore'.*'allow', 'raise', 'skip'"):
        build(nonfinite="ignore")
    _, optimizer = build(nonfinite="skip")
    assert pickle.loads(pickle.dumps(optimizer)).nonfinite == "skip"
