"""Tensors that a projection does not apply to run outside of it, as they would inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.engine.plan import PASSES

WITHOUT = PASSES - {"hoist"}


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape)) for shape in ((6, 5), (7,), (5, 6), (4, 4))]


def feed(tensors: list[Tensor], step: int, missing: int | None = None) -> None:
    for i, tensor in enumerate(tensors):
        tensor.grad = None if i == missing else (tensor.detach() * (step + 1)).sin()


def built(tensors: list[Tensor], modules: str, **settings: Any) -> Optimizer:
    groups = [{"params": [tensor]} for tensor in tensors]
    groups[-1].update(settings)
    return Optimizer(groups, modules, "lr(0.05)")


@pytest.mark.parametrize(
    "modules",
    [
        "low_rank([adam()], rank=2, period=2)",
        "galore([adam(), scale(2.0)], rank=2, period=2)",
        "low_rank([heavy_ball(0.9), adam()], rank=2, period=2)",
        "low_rank([normalize(), adam()], rank=2, period=2)",
    ],
)
def test_steps_and_state_are_those_inside(modules: str) -> None:
    (one, first), (other, second) = (
        (tensors, built(tensors, modules, rank=None)) for tensors in (parameters(), parameters())
    )
    second._use_passes(WITHOUT)
    for step in range(5):
        for tensors, optimizer in ((one, first), (other, second)):
            feed(tensors, step, missing=1 if step == 3 else None)
            optimizer.step()
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert first.state[a].keys() == second.state[b].keys()


@pytest.mark.parametrize("passes", [PASSES, WITHOUT], ids=["outside", "inside"])
def test_a_tensor_may_pass_for_a_while(passes: frozenset[str]) -> None:
    """Its state has another shape then, and begins anew."""
    tensors = parameters()
    optimizer = built(tensors, "low_rank([adam()], rank=2, period=2)")
    optimizer._use_passes(passes)
    group, last = optimizer.param_groups[-1], tensors[-1]
    rank = group["rank"]
    for step in range(2):
        feed(tensors, step)
        optimizer.step()
    group["rank"] = None
    feed(tensors, 2)
    optimizer.step()
    state = optimizer.state[last]
    assert sorted(state) == [f"0/modules/0/{name}" for name in ("exp_avg", "exp_avg_sq", "step")]
    assert state["0/modules/0/step"] == 1
    assert state["0/modules/0/exp_avg"].shape == (4, 4)
    group["rank"] = rank
    for step in range(3, 5):
        feed(tensors, step)
        optimizer.step()
    state = optimizer.state[last]
    assert state["0/modules/0/step"] == 2
    assert min(state["0/modules/0/exp_avg"].shape) == 2
    assert optimizer.state[tensors[0]]["0/modules/0/step"] == 5
