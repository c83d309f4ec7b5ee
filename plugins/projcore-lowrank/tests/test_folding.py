"""Stacks of matrices: every subspace takes them in one batched call, by a setting of a group."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, StepError
from projcore.modules import LR, Adam
from projcore_lowrank import (
    CoordinateSubspace,
    DCTSelect,
    GaLore,
    LDAdamSubspace,
    LowRank,
    RandomSubspace,
    SOAPRotation,
)

MADE: dict[str, Callable[..., Module]] = {
    "low_rank": lambda **how: LowRank([Adam()], rank=2, period=3, **how),
    "galore": lambda **how: GaLore([Adam()], rank=2, period=3, **how),
    "ldadam_subspace": lambda **how: LDAdamSubspace([Adam()], rank=2, **how),
    "random_subspace": lambda **how: RandomSubspace([Adam()], rank=2, period=3, **how),
    "coordinate_subspace": lambda **how: CoordinateSubspace([Adam()], rank=2, period=3, **how),
    "dct_select": lambda **how: DCTSelect([Adam()], rank=2, period=3, **how),
    "soap_rotation": lambda **how: SOAPRotation([Adam()], period=3, **how),
}
SHAPES = [(3, 6, 5), (4, 5, 6), (5, 5), (5,)]


def parameters(shapes: Any = SHAPES) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(s, generator=generator).double()) for s in shapes]


def train(params: list[Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).double()
        optimizer.step()


def same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MADE)
def test_a_group_says_how_it_is_folded(name: str) -> None:
    one, other = parameters(), parameters()
    built = Optimizer(one, MADE[name](folding="last2"), LR(0.1))
    groups = [{"params": other[:2], "folding": "last2"}, {"params": other[2:]}]
    said = Optimizer(groups, MADE[name](), LR(0.1))
    expected = said.memory().state
    for optimizer, params in ((built, one), (said, other)):
        train(params, optimizer, range(8))
    same(one, other)
    assert said.memory().state == expected == built.memory().state
    folded = parameters()
    train(folded, Optimizer(folded, MADE[name](), LR(0.1)), range(8))
    assert not torch.equal(folded[0], one[0])
    same(folded[2:], one[2:], 1e-9)  # of two sides or fewer, nothing is folded


@pytest.mark.parametrize("name", MADE)
def test_resume_is_bitwise(name: str) -> None:
    params = parameters()

    def build(of: list[Parameter]) -> Optimizer:
        groups = [{"params": of[:1], "folding": "last2"}, {"params": of[1:]}]
        return Optimizer(groups, MADE[name](), LR(0.1))

    optimizer = build(params)
    train(params, optimizer, range(4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = copy.deepcopy(params)
    resumed = build(others)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(params, optimizer, range(4, 9))
    train(others, resumed, range(4, 9))
    same(params, others)


@pytest.mark.parametrize("name", MADE)
def test_folding_does_not_change_once_there_is_memory(name: str) -> None:
    params = parameters()
    optimizer = Optimizer(params, MADE[name](), LR(0.1))
    optimizer.param_groups[0]["folding"] = "last2"
    train(params, optimizer, range(2))
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0]["folding"] = "sides" if name == "soap_rotation" else "fold"
    with pytest.raises(StepError, match=r"Folding cannot change once there is state. Set it"):
        train(params, optimizer, range(2, 3))
    same(params, before)
    optimizer.param_groups[0]["folding"] = "last2"
    train(params, optimizer, range(2, 3))
    for wrong in ("rows", 2, None):
        with pytest.raises(ArgumentError, match=r"folding=.* is not known"):
            Optimizer([{"params": params, "folding": wrong}], MADE[name](), LR(0.1))
        with pytest.raises(ArgumentError, match=r"folding=.* is not known"):
            MADE[name](folding=wrong)


VARIANTS: list[dict[str, Any]] = [
    {"side": "std"},
    {"side": "reverse_std", "combine": "fira"},
    {"side": "left", "combine": "apollo", "refresh": "svd"},
    {"side": "right", "combine": "apollo_mini", "refresh": "gram"},
    {"side": "full", "combine": "sign", "refresh": "randomized"},
    {"rank": 0.5, "combine": "residual", "policy": "transport", "refresh": "svd"},
    {"rank": 1, "error_feedback": True, "period": 1, "refresh": "svd", "source": "momentum"},
]


@pytest.mark.parametrize("how", VARIANTS, ids=str)
def test_a_stack_is_a_list_of_matrices(how: dict[str, Any]) -> None:
    """The oracle: the same subspace on the matrices one by one. (2, 3) is a batch, too."""

    def make(**more: Any) -> Module:
        return LowRank([Adam()], **{"rank": 2, "period": 3, "stagger": False, **how, **more})

    stacks = parameters([(2, 3, 6, 5), (4, 5, 6)])
    optimizer = Optimizer(stacks, make(folding="last2"), LR(0.1))
    matrices = [[Parameter(m.clone()) for m in p.detach().flatten(0, -3)] for p in stacks]
    single = Optimizer([m for each in matrices for m in each], make(), LR(0.1))
    for step in range(8):
        train(stacks, optimizer, range(step, step + 1))
        for stack, each in zip(stacks, matrices, strict=True):
            assert stack.grad is not None
            for matrix, grad in zip(each, stack.grad.flatten(0, -3), strict=True):
                matrix.grad = grad.clone()
        single.step()
    ends = [torch.stack(each).reshape(p.shape) for each, p in zip(matrices, stacks, strict=True)]
    same(stacks, ends, 1e-9)
