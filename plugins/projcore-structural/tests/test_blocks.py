"""Blocks: what they are, that nothing is padded, and that a stack of them is as many tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer, build
from projcore.errors import ArgumentError
from projcore.testing.map import Map
from projcore.testing.parts import Moments, Momentum, Scale, UnitNorm
from projcore.testing.strategies import tensor_lists
from projcore_structural import BlockPartition, Stack, VectorProjection

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
SHAPES = [(7, 5), (11,), (), (7, 5), (2, 3, 2, 2), (0, 3), (1, 1), (13, 4)]


class CountedOperations(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def pieces(length: int, size: int | None, count: int | None) -> list[int]:
    """The lengths of the pieces of a dimension: the oracle, counted one by one."""
    if length == 0 or (size is None and count is None):
        return [length]
    if size is not None:
        return [min(size, length - start) for start in range(0, length, size)]
    assert count is not None
    count = min(count, length)
    return [len(range(k, length, count)) for k in range(count)]


def blocks(tensor: Tensor, size: Any = None, count: Any = None) -> list[Tensor]:
    """The blocks of one tensor, by loops: the oracle."""
    given_numbers = count if size is None else size
    numbers = (given_numbers,) if isinstance(given_numbers, int) else given_numbers
    if len(numbers) == 1:
        tensor = tensor.reshape(-1)
    elif tensor.ndim < len(numbers):
        return [tensor]
    else:
        kept = tensor.shape[: len(numbers) - 1]
        tensor = tensor.reshape(*kept, math.prod(tensor.shape[len(kept) :]))
    cuts = []
    for length, number in zip(tensor.shape, numbers, strict=True):
        lengths = pieces(length, *((None, number) if size is None else (number, None)))
        starts = itertools.accumulate([0, *lengths[:-1]])
        cuts.append([slice(a, a + n) for a, n in zip(starts, lengths, strict=True)])
    return [tensor[chosen] for chosen in itertools.product(*cuts)]


def described(tensors: list[Tensor]) -> list[str]:
    """Tensors as texts in order, so that lists in any order can be compared."""
    return sorted(f"{tuple(t.shape)} {t.dtype} {t.tolist()}" for t in tensors)


CUTS: list[dict[str, Any]] = [
    {"size": 1},
    {"size": 4},
    {"size": 1000},
    {"count": 3},
    {"size": (2, 3)},
    {"size": (None, 2)},
    {"count": (2, 2)},
    {"count": (100, 1)},
    {"size": (2, 2, 3)},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@settings(max_examples=40, deadline=None)
@given(tensors=tensor_lists(dtypes=DTYPES))
def test_blocks_are_those_of_loops(cut: Any, tensors: list[Tensor]) -> None:
    made = Map(BlockPartition([Scale()], **cut), tensors)
    inside = made.project(tensors, "update")
    assert len({(t.shape[1:], t.dtype) for t in inside}) == len(inside)  # one stack for each shape
    expected = [block for tensor in tensors for block in blocks(tensor, **cut)]
    assert described([entry for stack in inside for entry in stack]) == described(expected)
    for tensor, same in zip(tensors, made.unproject(inside, "update"), strict=True):
        assert torch.equal(tensor, same)
        assert same.shape == tensor.shape


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 45), st.integers(1, 45))
def test_pieces_cover_a_dimension(length: int, size: int, count: int) -> None:
    vector = torch.arange(length).double()
    by_size = [len(b) for b in blocks(vector, size=size)]
    by_count = [len(b) for b in blocks(vector, count=count)]
    for cut, lengths in (({"size": size}, by_size), ({"count": count}, by_count)):
        inside = Map(BlockPartition([Scale()], **cut), [vector]).project([vector], "update")
        assert sorted(len(entry) for stack in inside for entry in stack) == sorted(lengths)
    assert max(by_count) - min(by_count) <= 1


def start(shapes: list[tuple[int, ...]] = SHAPES, dtype: Any = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]


def run(
    optimizer: Optimizer, params: list[Tensor], steps: int = 4, missing: tuple[int, ...] = ()
) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for i, param in enumerate(params):
            grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)
            param.grad = None if i in missing else grad
        optimizer.step()


@pytest.mark.parametrize("cut", CUTS[:7], ids=str)
def test_batched_is_looped(cut: Any) -> None:
    """Each block as a parameter of its own, in a plain optimizer, moves as the block does."""
    params, twins = start(), start()
    optimizer = Optimizer(params, BlockPartition([Momentum(), UnitNorm(), Moments()], **cut))
    alone = [
        [b.detach().clone().requires_grad_() for b in blocks(twin.detach(), **cut)]
        for twin in twins
    ]
    flat = [block for group in alone for block in group]
    oracle = Optimizer(flat, Momentum(), UnitNorm(), Moments())
    for step in range(4):
        run_seed = torch.Generator().manual_seed(step)
        for param, group in zip(params, alone, strict=True):
            param.grad = torch.randn(param.shape, dtype=param.dtype, generator=run_seed)
            for block, grad in zip(group, blocks(param.grad, **cut), strict=True):
                block.grad = grad
        optimizer.step()
        oracle.step()
    for param, group in zip(params, alone, strict=True):
        for actual, expected in zip(blocks(param.detach(), **cut), group, strict=True):
            torch.testing.assert_close(actual, expected.detach(), rtol=1e-12, atol=1e-13)


def test_the_end_counts_as_what_it_is() -> None:
    """A shorter block at the end has the norm of its own elements, and of nothing else."""
    weight = torch.zeros(5, requires_grad=True)
    optimizer = Optimizer([weight], BlockPartition([UnitNorm()], size=3))
    weight.grad = torch.tensor([3.0, 0.0, 4.0, 8.0, 6.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -torch.tensor([0.6, 0.0, 0.8, 0.8, 0.6]))


@pytest.mark.parametrize("cut", [{"size": 64}, {"size": (8, 4)}, {"count": (3, 2)}], ids=str)
def test_many_tensors_take_few_operations(cut: Any) -> None:
    counts = []
    for number in (2, 2000):
        tensors = [torch.ones(9, 8) for _ in range(number)]
        made = Map(BlockPartition([Scale()], **cut), tensors)
        with CountedOperations() as counted:
            made.unproject(made.project(tensors, "update"), "update")
        counts.append(counted.count)
    assert counts[0] == counts[1] < 60


def test_a_missing_gradient_counts_as_zero() -> None:
    params, zeros = start(), start()
    optimizer = Optimizer(params, BlockPartition([UnitNorm()], size=4), Scale())
    before = [param.detach().clone() for param in params]
    run(optimizer, params, missing=(1, 3))
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [
        i in (1, 3) or p.numel() == 0 for i, p in enumerate(params)
    ]
    run(Optimizer(zeros, BlockPartition([UnitNorm()], size=4), Scale()), zeros)
    for i in (0, 2, 4, 7):
        torch.testing.assert_close(params[i], zeros[i])


def test_groups_that_differ_meet_only_in_a_stack() -> None:
    one, other, third = start([(4, 2), (4, 2), (6,)])
    groups = [{"params": [one, third], "lr": 0.1}, {"params": [other], "lr": 0.2}]
    inside = BlockPartition([Scale()], size=(2, 2))
    run(Optimizer(groups, inside), [one, other, third])  # elementwise: outside
    mixed: list[Any] = [{"params": [one], "momentum": 0.1}, {"params": [other], "momentum": 0.2}]
    with pytest.raises(ArgumentError, match="disagree: momentum"):
        Optimizer(mixed, BlockPartition(["muon(weight_decay=0.0)"], size=(2, 2)))


def test_muon_on_tiles_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6))
    weights = [model[0].weight, model[2].weight]
    tiles = BlockPartition(["muon(weight_decay=0.0)"], size=(4, 3))
    optimizer = Optimizer(weights, tiles, "lr(0.05)")
    inputs = torch.randn(64, 6)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"size": 2, "count": 2},
        {"size": 0},
        {"size": (2, -1)},
        {"count": (None,)},
        {"size": 2.0},
        {"size": ()},
        {"size": True},
    ],
    ids=str,
)
def test_wrong_cuts_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"BlockPartition was given .*Pass for example"):
        BlockPartition([Scale()], **wrong)


@pytest.mark.parametrize("inner", [Stack([UnitNorm()]), BlockPartition([UnitNorm()], size=2)])
def test_a_stack_in_a_stack_is_refused(inner: Any) -> None:
    for outer in (Stack([inner]), BlockPartition([inner], size=(2, 2))):
        with pytest.raises(ArgumentError, match="inside a projection that stacks tensors"):
            Optimizer(start(), outer)


def test_it_is_written_as_a_spec() -> None:
    text = "block_partition([sign()], size=(2, None))"
    assert str(build(text)) == text
    assert str(build(build(text).spec())) == text


def test_blocks_of_the_merged_vector() -> None:
    params = start([(3, 4), (5,), ()])
    optimizer = Optimizer(params, VectorProjection([BlockPartition([UnitNorm()], size=9)]))
    for param in params:
        param.grad = torch.ones_like(param)
    before = torch.cat([p.detach().reshape(-1) for p in params])
    optimizer.step()
    step = before - torch.cat([p.detach().reshape(-1) for p in params])
    torch.testing.assert_close(step, torch.full((18,), 1 / 3, dtype=torch.float64))
