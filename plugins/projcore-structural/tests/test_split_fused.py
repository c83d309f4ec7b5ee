"""Fused weights: the parts are tensors of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projcore import Optimizer
from projcore.errors import ArgumentError, CheckpointError
from projcore.testing.map import Map
from projcore.testing.parts import Momentum, Scale, UnitNorm
from projcore_structural import Freeze, Route, SplitFused, Stack, VectorProjection


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({"parts": 3}, [*[(4, 5)] * 3, (4, 12), *[(1, 12, 1)] * 3, (), (0, 3), *[(5,)] * 3]),
        ({"parts": (3, 9)}, [(3, 5), (9, 5), (4, 12), (3, 12, 1), (), (0, 3), (15,)]),
        (
            {"parts": (5, 7), "dim": 1},
            [(12, 5), (4, 5), (4, 7), (3, 5, 1), (3, 7, 1), (), (0, 3), (15,)],
        ),
        (
            {"parts": 4, "dim": -1},
            [(12, 5), *[(4, 3)] * 4, (3, 12, 1), (), (0, 3), (15,)],
        ),
    ],
)
def test_parts_are_slices(arguments: Any, shapes: Any) -> None:
    tensors = draw((12, 5), (4, 12), (3, 12, 1), (), (0, 3), (15,))
    made = Map(SplitFused([Scale()], **arguments), tensors)
    inside = made.project(tensors, "update")
    assert [tuple(t.shape) for t in inside] == shapes
    assert all(map(torch.equal, made.unproject(inside, "update"), tensors))
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
    assert {t.untyped_storage().data_ptr() for t in inside if t.numel()} <= storages  # views


def train(model: nn.Module, optimizer: Optimizer, steps: int = 4) -> list[Tensor]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)
        optimizer.step()
    return [param.detach() for param in model.parameters()]


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.qkv = nn.Parameter(torch.randn(12, 4, generator=generator))
        self.gate_up = nn.Parameter(torch.randn(12, 4, generator=generator))
        self.bias = nn.Parameter(torch.randn(12, generator=generator))


class Apart(nn.Module):
    """The same, with a parameter for each of query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        fused = Fused()
        parts = fused.qkv.detach().split([8, 2, 2])
        self.q, self.k, self.v = (nn.Parameter(part.clone()) for part in parts)
        self.gate_up, self.bias = fused.gate_up, fused.bias


@pytest.mark.parametrize("stacked", [False, True])
def test_it_is_as_if_they_had_never_been_fused(stacked: bool) -> None:
    fused, apart = Fused(), Apart()
    modules: list[Any] = [UnitNorm(), Momentum()]
    inner = SplitFused([Stack(modules)] if stacked else modules, (8, 2, 2), where="qkv")
    optimizer = Optimizer(fused.named_parameters(), inner, Scale())
    oracle = Optimizer(apart.parameters(), UnitNorm(), Momentum(), Scale())
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for param in fused.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        grads = fused.qkv.grad.split([8, 2, 2])
        apart.q.grad, apart.k.grad, apart.v.grad = grads
        apart.gate_up.grad, apart.bias.grad = fused.gate_up.grad, fused.bias.grad
        optimizer.step()
        oracle.step()
    whole = torch.cat([apart.q, apart.k, apart.v])
    torch.testing.assert_close(fused.qkv, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.gate_up, apart.gate_up, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.bias, apart.bias, rtol=1e-6, atol=1e-6)


def test_without_where_all_that_fit_are_split() -> None:
    named, fitting = Fused(), Fused()
    by_name = SplitFused([UnitNorm()], 3, where=["qkv", "gate_up", "bias"])
    one = train(named, Optimizer(named.named_parameters(), by_name))
    other = train(fitting, Optimizer(fitting.parameters(), SplitFused([UnitNorm()], 3)))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("switch", [{"in_backward": True}, {"bucket_bytes": 100}])
def test_parameters_are_stepped_one_by_one(switch: dict[str, Any]) -> None:
    """Each part is of one parameter, so others need not be there."""
    found = []
    for options in ({}, switch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6)).double()
        inner = SplitFused([Momentum(), UnitNorm()], 3, where=["0.weight", "2.weight"])
        optimizer = Optimizer(model.named_parameters(), inner, Scale(0.1))
        for name, value in options.items():
            setattr(optimizer, name, value)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 8).double()).square().mean().backward()
            optimizer.step()
        found.append([param.detach() for param in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_groups_act_on_their_own_parts() -> None:
    """A part is made from one parameter, so its group is known inside, and its name."""
    model = Fused()
    before = [param.detach().clone() for param in model.parameters()]
    groups = [
        {"params": [("qkv", model.qkv)], "max_norm": 0.1},
        {"params": [("gate_up", model.gate_up), ("bias", model.bias)]},
    ]
    clip = "clip_norm(0.2, per_tensor=True)"
    route = Route({"bias": Freeze(), "*": clip})
    after = train(model, Optimizer(groups, SplitFused([route], 3)), steps=1)
    moved = [new - old for new, old in zip(after, before, strict=True)]
    for whole, norm in zip(moved, (0.1, 0.2, 0.0), strict=True):
        assert [float(part.norm()) for part in whole.split(4)] == pytest.approx([norm] * 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parts": 0}, "at least 1"),
        ({"parts": (3, 0)}, "at least 1"),
        ({"parts": ()}, "at least 1"),
        ({"parts": 1.5}, "at least 1"),
        ({"parts": 5}, "splits none of its 3 tensors"),
        ({"parts": 1}, "splits none"),
        ({"parts": (5, 5), "where": "qkv"}, "'qkv'. The parts do not fit dimension 0"),
        ({"parts": 3, "where": "kqv"}, "splits none"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Optimizer(Fused().named_parameters(), SplitFused([UnitNorm()], **arguments))
    assert words in str(caught.value)


def test_names_are_needed_only_where_they_are_asked_for() -> None:
    with pytest.raises(ArgumentError, match="without names"):
        Optimizer(Fused().parameters(), SplitFused([UnitNorm()], 3, where="qkv"))
    Optimizer(Fused().parameters(), SplitFused([UnitNorm()], 3, where="ndim==2"))


def test_where_is_saved_and_checked() -> None:
    model = Fused()
    where = "qkv"
    optimizer = Optimizer(model.named_parameters(), SplitFused([UnitNorm()], 3, where=where))
    train(model, optimizer)
    assert [int(optimizer.state[p]["0/part"]) for p in model.parameters()] == [0, 1, 1]
    other = Optimizer(model.named_parameters(), SplitFused([UnitNorm()], 3, where=["gate_up"]))
    with pytest.raises(CheckpointError, match="treats the parameter otherwise"):
        other.load_state_dict(optimizer.state_dict())


def test_in_a_stack_it_is_refused() -> None:
    with pytest.raises(ArgumentError, match="stacks tensors"):
        Optimizer(Fused().parameters(), Stack([SplitFused([UnitNorm()], 3)]))
    Optimizer(Fused().parameters(), VectorProjection([SplitFused([UnitNorm()], 3)]))


@pytest.mark.parametrize("where", [None, "qkv"])
def test_what_is_split_may_be_frozen(where: str | None) -> None:
    fused = Fused()
    others = [("other", nn.Parameter(torch.zeros(7)))]
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    Optimizer([*fused.named_parameters(), *others], SplitFused([UnitNorm()], 3, where=where))
    with pytest.raises(ArgumentError, match="splits none of its 1 tensors"):
        Optimizer(others, SplitFused([UnitNorm()], 3, where=where))
    with pytest.raises(ArgumentError, match="splits none of its 1 tensors"):
        Optimizer([*fused.named_parameters(), *others], SplitFused([UnitNorm()], 5))
