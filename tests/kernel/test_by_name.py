"""Checkpoints go to the parameters of the same names, and to those of the shapes they had."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer
from projcore.errors import ArgumentError, CheckpointError
from projcore.modules import LBFGS, LR, Adam, AdamMini, ClipNorm, GradientNoise, HeavyBall, Route
from projcore.projections import (
    BlockPartition,
    CoordinateSubspace,
    IntrinsicSubspace,
    LowRank,
    Mask,
    ScalarProjection,
    Stack,
    Tensorize,
    VectorProjection,
)

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 3), "b.bias": (2,)}
NAMES = tuple(SHAPES)
OTHER = ("b.weight", "b.bias", "a.bias", "a.weight")

CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam": lambda: [Adam(), LR(0.1)],
    "in a vector": lambda: [VectorProjection([Adam(), LR(0.1)])],
    "low rank": lambda: [LowRank([Adam()], rank=2, period=2), LR(0.1)],
    "routed": lambda: [Route({"*.weight": [Adam()], "*": [HeavyBall()]}), LR(0.1)],
    "noise": lambda: [GradientNoise(0.1), HeavyBall(), LR(0.1)],
    "curvature": lambda: [LBFGS(), LR(0.1)],
}


def parameters() -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
        for name, shape in SHAPES.items()
    }


def build(chain: Any, groups: Sequence[Sequence[str]], **lr: Any) -> Any:
    params = parameters()
    made = [{"params": [(name, params[name]) for name in group]} for group in groups]
    return params, Optimizer(made, *chain())


def train(params: dict[str, Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for name, param in params.items():
            generator = torch.Generator().manual_seed(100 * step + NAMES.index(name))
            param.grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)
        optimizer.step()


def saved(optimizer: Optimizer) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resume(chain: Any, one: Any, other: Any) -> tuple[dict[str, Parameter], dict[str, Parameter]]:
    """Trains with one order, goes on with both, and returns where they led."""
    params, optimizer = build(chain, one)
    train(params, optimizer, range(3))
    state = saved(optimizer)
    again, resumed = build(chain, other)
    with torch.no_grad():
        for name, param in again.items():
            param.copy_(params[name])
    resumed.load_state_dict(state)
    for group, names in zip(resumed.param_groups, other, strict=True):
        assert group["param_names"] == list(names)
    for each, o in ((params, optimizer), (again, resumed)):
        train(each, o, range(3, 6))
    return params, again


@pytest.mark.parametrize("chain", CHAINS)
def test_another_order(chain: str) -> None:
    params, again = resume(CHAINS[chain], [NAMES], [OTHER])
    for name in NAMES:
        # Sums over all parameters, as of a curvature, are taken in another order.
        torch.testing.assert_close(again[name], params[name], rtol=1e-9, atol=1e-12)


def test_groups_in_another_order_keep_their_settings() -> None:
    one, other = [NAMES[:1], NAMES[1:]], [(NAMES[3], NAMES[1], NAMES[2]), NAMES[:1]]
    params, optimizer = build(CHAINS["adam"], one)
    optimizer.param_groups[0]["lr"] = 0.5
    train(params, optimizer, range(1))
    again, resumed = build(CHAINS["adam"], other)
    resumed.load_state_dict(saved(optimizer))
    assert [group["lr"] for group in resumed.param_groups] == [0.1, 0.5]
    for name in NAMES:
        old, new = optimizer.state[params[name]], resumed.state[again[name]]
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_names_that_wrappers_change() -> None:
    params, optimizer = build(CHAINS["adam"], [NAMES])
    train(params, optimizer, range(1))
    state = saved(optimizer)
    state["param_groups"][0]["param_names"] = [f"module._orig_mod.{name}" for name in NAMES]
    again, resumed = build(CHAINS["adam"], [OTHER])
    resumed.load_state_dict(state)
    for name in NAMES:
        key = "0/exp_avg"
        assert torch.equal(resumed.state[again[name]][key], optimizer.state[params[name]][key])


MERGED: dict[str, Callable[[], list[Any]]] = {
    "curvature in a vector": lambda: [VectorProjection([LBFGS(), LR(0.1)])],
    "adam_mini in a vector": lambda: [VectorProjection([ClipNorm(1.0), AdamMini(), LR(0.1)])],
    "a plane": lambda: [IntrinsicSubspace([Adam(), LR(0.1)], dimension=5)],
    "stacks": lambda: [Stack([LowRank([Adam()], rank=2), LR(0.1)])],
}


@pytest.mark.parametrize("chain", MERGED)
def test_another_order_of_what_is_merged_is_refused(chain: str) -> None:
    params, optimizer = build(MERGED[chain], [NAMES])
    train(params, optimizer, range(2))
    _, resumed = build(MERGED[chain], [OTHER])
    with pytest.raises(CheckpointError, match=r"another order.*several parameters are merged"):
        resumed.load_state_dict(saved(optimizer))
    assert not resumed.state
    params, again = resume(MERGED[chain], [NAMES], [NAMES])
    assert all(torch.equal(params[name], again[name]) for name in NAMES)


DISAGREE: dict[str, tuple[Any, str]] = {
    "a name that is not here": (
        [(*NAMES[:3], "c.bias")],
        "state dict has parameter 'b.bias', which this optimizer does not have",
    ),
    "one more here": (
        [(*NAMES, "c.bias")],
        "optimizer has parameter 'c.bias', which the state dict does not have",
    ),
    "another group": ([NAMES[:2], NAMES[2:]], "The group of parameter 'a.weight' is"),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_names_that_disagree(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, message = DISAGREE[case]
    params, optimizer = build(
        CHAINS["adam"], [NAMES] if len(groups) == 1 else [NAMES[:1], NAMES[1:]]
    )
    train(params, optimizer, range(1))
    monkeypatch.setitem(SHAPES, "c.bias", (2,))
    _, other = build(CHAINS["adam"], groups)
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(saved(optimizer))
    assert not other.state


def test_by_position_where_only_one_side_has_names() -> None:
    params, optimizer = build(CHAINS["adam"], [NAMES])
    train(params, optimizer, range(1))
    other = Optimizer(parameters().values(), *CHAINS["adam"]())
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["param_names"] == list(NAMES)  # as torch does it
    unnamed = Optimizer(parameters().values(), *CHAINS["adam"]())
    unnamed.load_state_dict(other.state_dict())


# Memory that looks the same for parameters of other shapes.
ALIKE: dict[str, tuple[Callable[[], list[Any]], Any, Any]] = {
    "a plane": (lambda: [IntrinsicSubspace([Adam()], 5), LR(0.1)], [(4, 3)], [(2, 6)]),
    "a plane of parts": (
        lambda: [IntrinsicSubspace([Adam()], 5), LR(0.1)],
        [(4,), (2,)],
        [(2,), (4,)],
    ),
    "curvature in a vector": (lambda: [VectorProjection([LBFGS()]), LR(0.1)], [(4, 3)], [(3, 4)]),
    "parts of a vector": (
        lambda: [VectorProjection([LBFGS()]), LR(0.1)],
        [(4,), (2,)],
        [(2,), (4,)],
    ),
    "curvature in scalars": (lambda: [ScalarProjection([LBFGS()]), LR(0.1)], [(4, 3)], [(6, 2)]),
    "adam_mini in a vector": (
        lambda: [VectorProjection([ClipNorm(1.0), AdamMini()]), LR(0.1)],
        [(4, 3)],
        [(12,)],
    ),
    "tensorize": (lambda: [Tensorize([LowRank([Adam()], rank=1)]), LR(0.1)], [(8, 2)], [(2, 8)]),
    "blocks": (
        lambda: [BlockPartition([ClipNorm(1.0), AdamMini()], size=(2, 2)), LR(0.1)],
        [(4, 2)],
        [(2, 4)],
    ),
    "entries": (
        lambda: [CoordinateSubspace([Adam()], rank=4, axis="entries"), LR(0.1)],
        [(4, 3)],
        [(2, 6)],
    ),
    "mask": (lambda: [Mask([Adam()], fraction=0.5), LR(0.1)], [(4, 3)], [(2, 6)]),
}


def shaped(shapes: Sequence[tuple[int, ...]]) -> list[Parameter]:
    params = [Parameter(torch.randn(s, generator=torch.Generator().manual_seed(1))) for s in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(2))
    return params


@pytest.mark.parametrize("case", ALIKE)
def test_memory_of_other_shapes(case: str) -> None:
    chain, shapes, others = ALIKE[case]
    optimizer = Optimizer(shaped(shapes), *chain())
    optimizer.step()
    state = saved(optimizer)
    other = Optimizer(shaped(others), *chain())
    with pytest.raises(CheckpointError, match=r"Parameter 0 had shape|has shape|in the state dict"):
        other.load_state_dict(state)
    assert not other.state
    same = Optimizer(shaped(shapes), *chain())
    same.load_state_dict(state)
    same.step()
    for group in state["param_groups"]:  # as saved before shapes were
        group.pop("projcore_shapes", None)
    Optimizer(shaped(shapes), *chain()).load_state_dict(state)


def test_shapes_are_only_in_what_is_saved() -> None:
    """And not where the memory shows them, as it does for flat and sharded parameters."""
    optimizer = Optimizer(shaped([(4, 3), (3,)]), LowRank([Adam()], rank=2), LR(0.1))
    assert "projcore_shapes" not in saved(optimizer)["param_groups"][0]
    optimizer.step()
    state = saved(optimizer)
    assert state["param_groups"][0]["projcore_shapes"] == "4,3 own"
    other = Optimizer(shaped([(4, 3), (3,)]), LowRank([Adam()], rank=2), LR(0.1))
    other.load_state_dict(state)
    assert "projcore_shapes" not in other.param_groups[0]
    plain = Optimizer(shaped([(4, 3), (3,)]), Adam(), LR(0.1))
    plain.step()
    assert "projcore_shapes" not in saved(plain)["param_groups"][0]


def test_histories_that_disagree() -> None:
    optimizer = Optimizer(shaped([(4, 3), (3,)]), LBFGS(), LR(0.1))
    optimizer.step()
    for key in ("0/steps", "0/changes"):
        state = saved(optimizer)
        state["state"][1][key] = state["state"][1][key][:3]
        other = Optimizer(shaped([(4, 3), (3,)]), LBFGS(), LR(0.1))
        with pytest.raises(CheckpointError, match=rf"'{key}' of parameter 1 has 3 entries|has 3\."):
            other.load_state_dict(state)
        assert not other.state


def test_a_tensor_of_no_dimensions(recwarn: Any) -> None:
    chain = lambda: [VectorProjection([LBFGS()]), LR(0.1)]  # noqa: E731
    optimizer = Optimizer(shaped([(), (2,)]), *chain())
    optimizer.step()
    state = saved(optimizer)
    assert state["param_groups"][0]["projcore_shapes"] == "scalar 2"
    with pytest.raises(CheckpointError, match=r"\(scalar\) when its state was saved"):
        Optimizer(shaped([(1,), (2,)]), *chain()).load_state_dict(state)


def test_groups_that_are_added_to_an_optimizer_of_a_model_have_its_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    optimizer = Optimizer(model, Adam(), lr=0.1)
    model.append(torch.nn.Linear(2, 2))
    optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.01})
    optimizer.add_param_group({"params": Parameter(torch.zeros(3))})
    optimizer.add_param_group({"params": [("mine", Parameter(torch.zeros(3)))]})
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["0.weight", "0.bias"], ["1.weight", "1.bias"], [None], ["mine"]]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(ArgumentError, match="no 'params'"):
        optimizer.add_param_group({"lr": 0.1})
    del model
    optimizer.add_param_group({"params": [Parameter(torch.zeros(3))]})
    assert optimizer.param_groups[-1]["param_names"] == [None]
