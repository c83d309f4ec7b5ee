"""Only chosen elements."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore.testing.map import Map
from projcore.testing.parts import Armijo, Momentum, Scale, UnitNorm
from projcore.testing.strategies import tensor_lists
from projcore_structural import Mask, Stack

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
CHOICES: list[dict[str, Any]] = [
    {"triangle": "lower"},
    {"triangle": "upper"},
    {"every": 1},
    {"every": 3},
    {"fraction": 0.3},
    {"fraction": 1.0},
]


def mask(choice: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Which elements are chosen: the oracle, where there is one."""
    if "triangle" in choice:
        ones = torch.ones(shape)
        return (ones.tril() if choice["triangle"] == "lower" else ones.triu()).bool()
    return (torch.arange(math.prod(shape)) % choice["every"] == 0).reshape(shape)


def learnt(projection: Mask, tensors: list[Tensor]) -> Map:
    made = Map(projection, tensors)
    made.learn(tensors, tensors, tensors, torch.zeros(()))
    return made


@pytest.mark.parametrize("choice", CHOICES[:4], ids=str)
@settings(max_examples=40, deadline=None)
@given(tensors=tensor_lists(dtypes=DTYPES))
def test_the_chosen_are_those_of_a_mask(choice: Any, tensors: list[Tensor]) -> None:
    if "triangle" in choice:
        tensors = [tensor for tensor in tensors if tensor.ndim >= 2]
    if not tensors:
        return
    made = learnt(Mask([Scale()], **choice), tensors)
    inside = made.project(tensors, "update")
    outside = made.unproject(inside, "update")
    for tensor, z, back in zip(tensors, inside, outside, strict=True):
        chosen = mask(choice, tuple(tensor.shape))
        assert torch.equal(z, tensor[chosen])
        assert torch.equal(back, torch.where(chosen, tensor, torch.zeros_like(tensor)))


@settings(max_examples=40, deadline=None)
@given(tensor_lists(dtypes=DTYPES))
def test_a_fraction_is_as_large_as_asked_for(tensors: list[Tensor]) -> None:
    for fraction in (0.01, 0.5, 1.0):
        made = learnt(Mask([Scale()], fraction=fraction), tensors)
        for tensor, z in zip(tensors, made.project(tensors, "update"), strict=True):
            assert len(z) == math.ceil(fraction * tensor.numel())
        inside = made.project(tensors, "update")
        again = made.project(made.unproject(inside, "update"), "update")
        assert all(map(torch.equal, again, inside))


def test_a_seed_is_a_choice() -> None:
    def index(seed: int, shape: Any = (50,)) -> list[int]:
        return Mask([Scale()], fraction=0.4, seed=seed).choose(shape).tolist()  # type: ignore[no-any-return]

    before = torch.random.get_rng_state()
    assert index(0) == index(0) == sorted(set(index(0)))
    assert index(0) != index(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    counts = torch.zeros(50)
    for seed in range(400):
        counts[index(seed)] += 1
    assert counts.sum() == 400 * 20
    assert 110 < counts.min() <= counts.max() < 210  # 160 each, with a deviation of 10


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_others_never_move(choice: Any) -> None:
    params = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = Optimizer(params, Mask([Momentum(), UnitNorm(), Scale()], **choice))
    before = [param.detach().clone() for param in params]
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    chosen = torch.zeros(20, dtype=torch.bool)
    chosen[optimizer.module.children["0"].choose((5, 4))] = True
    for param, old in zip(params, before, strict=True):
        assert torch.equal((param.detach() != old).reshape(-1), chosen)


def test_a_line_search_is_on_the_chosen_alone() -> None:
    x = torch.ones(6, dtype=torch.float64, requires_grad=True)
    optimizer = Optimizer([x], Mask([Armijo()], every=2))

    def closure(backward: bool = True) -> Tensor:
        loss = ((x - torch.arange(6)) ** 2).sum()
        if backward:
            optimizer.zero_grad()
            loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    torch.testing.assert_close(x.detach(), torch.tensor([0.0, 1, 2, 1, 4, 1]).double())


def test_entries_of_a_stack_are_chosen_alike() -> None:
    ends = []
    for modules in (
        [Stack([Mask([UnitNorm()], fraction=0.5)])],
        [Mask([UnitNorm()], fraction=0.5)],
    ):
        params = [torch.ones(3, 4, requires_grad=True) for _ in range(3)]
        for i, param in enumerate(params):
            param.grad = torch.full((3, 4), i + 1.0)
        Optimizer(params, *modules).step()
        ends.append([param.detach() for param in params])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "Exactly one must be given"),
        ({"every": 2, "fraction": 0.5}, "Exactly one must be given"),
        ({"triangle": "left"}, "'lower' or 'upper'"),
        ({"every": 0}, "at least 1"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"fraction": 1.5}, "at most 1"),
    ],
)
def test_wrong_choices_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Mask([Scale()], **wrong)
