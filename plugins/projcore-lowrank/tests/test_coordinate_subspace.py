"""Coordinates against numpy's sorting, steps against dense matrices of zeros and ones."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import math
from collections import Counter

import numpy as np
import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, CheckpointError, StepError
from projcore.modules import LR, Adam, HeavyBall, WeightDecay
from projcore.projections import VectorProjection
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import CoordinateSubspace, coordinates
from projcore_lowrank.coordinates import largest

TAGS = frozenset({"linear", "orthonormal", "data_dependent"})
RANDOM = TAGS | {"stochastic"}
SUBJECTS = [
    Subject(
        CoordinateSubspace,
        f"CoordinateSubspace of {example}",
        tags,
        {"period": 2, "stagger": False, **example},
    )
    for example, tags in (
        ({"rank": 2}, TAGS),
        ({"rank": 0.5, "axis": "rows", "select": "norm", "combine": "fira"}, RANDOM),
        ({"rank": 0.4, "select": "random", "combine": "sign", "policy": "keep"}, RANDOM),
        ({"rank": 3, "axis": "entries", "policy": "transport"}, TAGS),
        ({"rank": 0.3, "axis": "entries", "combine": "sign", "error_feedback": True}, TAGS),
        ({"rank": 2, "select": "cyclic", "combine": "residual", "folding": "last2"}, TAGS),
    )
]


@parametrize_with_checks(*SUBJECTS)
def test_laws(check):
    check()


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps(modules, grads, start=None, **options):
    """Takes a step with each gradient; returns weights and the projection's memory on the way."""
    weight = torch.nn.Parameter(torch.zeros_like(grads[0]) if start is None else start.clone())
    optimizer = Optimizer([{"params": [weight], **options}], *modules)
    seen = []
    for grad in grads:
        weight.grad = grad
        optimizer.step()
        memory = copy.deepcopy(dict(optimizer.state[weight]))
        memory = {key.removeprefix("0/"): value for key, value in memory.items()}
        seen.append((weight.detach().clone(), memory))
    return seen


def chosen(grads, axis="columns", **options):
    """The indices after each step."""
    subspace = CoordinateSubspace([LR(1.0)], axis=axis, **{"period": 1, **options})
    end = "left" if axis == "rows" else "right"
    return [memory[end].tolist() for _, memory in steps([subspace], grads)]


def selector(indices, length, dtype=torch.float64):
    """The dense matrix, of columns of the identity."""
    return torch.eye(length, dtype=dtype)[:, indices]


# What is chosen.


@pytest.mark.parametrize("axis", ["columns", "rows", "entries"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (3, 2, 4)])
def test_the_largest_are_those_of_the_largest_norm(axis, dtype, shape):
    grad = draw(shape, 1, torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    exact = grad.to(torch.complex128 if dtype.is_complex else torch.float64)
    matrix = np.abs(exact.reshape(shape[0], -1).numpy())
    if axis == "entries":
        sizes = matrix.flatten()
    else:
        sizes = np.sqrt((matrix**2).sum(0 if axis == "columns" else 1))
    expected = sorted(np.argsort(-sizes, kind="stable")[:3].tolist())
    assert chosen([grad], axis, rank=3) == [expected]


def test_of_equal_ones_the_first_are_chosen():
    assert chosen([torch.ones(4, 6)], rank=3) == [[0, 1, 2]]
    grad = torch.tensor([[1.0, 2.0, 1.0, 2.0, 2.0, 1.0]]).repeat(2, 1)
    assert chosen([grad], rank=4) == [[0, 1, 3, 4]]
    assert chosen([torch.zeros(4, 6)], "entries", rank=2) == [[0, 1]]


@pytest.mark.parametrize("most", [0, 1 << 16])
def test_the_largest_of_many_numbers(most, monkeypatch):
    monkeypatch.setattr(coordinates, "SORTED", most)
    for seed in range(20):
        numbers = draw(37, seed).mul(3).round()  # many are equal
        numbers[seed] = -math.inf
        for count in (1, 2, 10, 36, 37):
            expected = np.sort(np.argsort(-numbers.numpy(), kind="stable")[:count])
            assert largest(numbers, count).tolist() == expected.tolist()


def test_a_part_is_of_all_there_is_to_choose_from():
    grad = draw((5, 16))
    assert len(chosen([grad], "columns", rank=0.25)[0]) == 4
    assert len(chosen([grad], "rows", rank=0.4)[0]) == 2
    assert len(chosen([grad], "entries", rank=0.1)[0]) == 8
    assert len(chosen([grad], "columns", rank=100)[0]) == 16


def test_cyclic_goes_round():
    grads = [draw((2, 5))] * 6
    assert chosen(grads, rank=2, select="cyclic") == [
        [0, 1], [2, 3], [0, 4], [1, 2], [3, 4], [0, 1]
    ]  # fmt: skip


def test_random_ones_are_equally_likely_and_follow_from_the_seed():
    grads = [draw((2, 6))] * 2000
    sets = chosen(grads, rank=2, select="random", seed=1)
    assert all(len(set(each)) == 2 and each == sorted(each) for each in sets)
    counts = Counter(tuple(each) for each in sets)
    assert len(counts) == 15
    # Chi-squared with 14 degrees of freedom is above 36.1 once in a thousand.
    expected = len(grads) / 15
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 36.1
    assert sets == chosen(grads, rank=2, select="random", seed=1)
    assert sets != chosen(grads, rank=2, select="random", seed=2)


def test_by_norm_is_drawing_in_turn():
    norms = torch.tensor([1.0, 2.0, 0.0, 4.0])
    sets = chosen([torch.diag(norms)] * 3000, rank=2, select="norm")
    counts = Counter(tuple(each) for each in sets)
    p = (norms / norms.sum()).tolist()
    chances = {
        (i, j): p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        for i, j in ((0, 1), (0, 3), (1, 3))
    }
    assert counts.keys() == chances.keys()
    # Chi-squared with 2 degrees of freedom is above 13.8 once in a thousand.
    terms = [(counts[k] - 3000 * chance) ** 2 / (3000 * chance) for k, chance in chances.items()]
    assert sum(terms) < 13.8


def test_those_of_norm_zero_come_last():
    norms = torch.tensor([0.0, 1.0, 0.0, 0.0, 1e-20, 0.0])
    for seed in range(5):
        (indices,) = chosen([torch.diag(norms).double()], rank=3, select="norm", seed=seed)
        assert {1, 4} < set(indices)
    assert chosen([torch.zeros(3, 4)], rank=2, select="norm") == [[0, 1]]


def test_tensors_choose_apart_from_each_other():
    weights = [torch.nn.Parameter(draw((3, 200))) for _ in range(2)]
    optimizer = Optimizer(weights, CoordinateSubspace([Adam()], select="random"), LR(0.1))
    for weight in weights:
        weight.grad = draw((3, 200))
    optimizer.step()
    one, other = (optimizer.state[weight]["0/right"] for weight in weights)
    assert len(one) == len(other) == 50
    assert not torch.equal(one, other)


# The steps.


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
@pytest.mark.parametrize("axis", ["columns", "rows", "entries"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_momentum_against_dense_matrices(policy, axis, dtype):
    shape = (5, 7)
    grads = [draw(shape, seed, dtype) for seed in range(6)]
    start = draw(shape, 9, dtype)
    options = {"rank": 3, "axis": axis, "period": 2, "policy": policy, "scale": 2.0}
    subspace = CoordinateSubspace([HeavyBall(0.5)], **options)
    chain = [subspace, LR(0.1), WeightDecay(0.01)]
    weight, momentum, before = start, None, None
    for k, (actual, memory) in enumerate(steps(chain, grads, start)):
        grad = grads[k]
        if axis == "rows":
            p = selector(memory["left"], 5, dtype)
            down, up = (lambda x, p=p: p.T @ x), (lambda z, p=p: p @ z)
        elif axis == "columns":
            p = selector(memory["right"], 7, dtype)
            down, up = (lambda x, p=p: x @ p), (lambda z, p=p: z @ p.T)
        else:
            p = selector(memory["right"], 35, dtype)
            down = lambda x, p=p: p.T @ x.flatten()  # noqa: E731
            up = lambda z, p=p: (p @ z).reshape(shape)  # noqa: E731
        if momentum is not None and k % 2 == 0 and policy != "keep":
            momentum = down(before(momentum)) if policy == "transport" else None
        momentum = down(grad) if momentum is None else 0.5 * momentum + down(grad)
        assert memory["modules/0/momentum_buffer"].shape == momentum.shape
        weight = weight - 0.2 * up(momentum) - 0.01 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-12, atol=1e-12)
        before = up


@pytest.mark.parametrize("axis", ["columns", "rows", "entries"])
@pytest.mark.parametrize("rule", ["sign", "residual"])
@pytest.mark.parametrize("feedback", [False, True])
def test_what_is_not_chosen_against_dense_matrices(axis, rule, feedback):
    shape = (5, 8)
    grads = [draw(shape, seed) for seed in range(5)]
    start = draw(shape, 9)
    subspace = CoordinateSubspace(
        [HeavyBall(0.5)],
        rank=2,
        axis=axis,
        select="cyclic",
        period=2,
        combine=rule,
        scale=3.0,
        residual_scale=0.3,
        error_feedback=feedback,
    )
    weight, momentum, error = start, torch.zeros(shape).double(), torch.zeros(shape).double()
    chain = [subspace, LR(0.1), WeightDecay(0.05)]
    for k, (actual, memory) in enumerate(steps(chain, grads, start)):
        mask = torch.zeros(shape, dtype=torch.bool)
        if axis == "rows":
            mask[memory["left"]] = True
        elif axis == "columns":
            mask[:, memory["right"]] = True
        else:
            mask.view(-1)[memory["right"]] = True
        grad = grads[k] + (error if feedback else 0)
        momentum = (0.5 * momentum if k % 2 else 0) + grad * mask  # it is reset
        error = torch.where(mask, 0.0, grad)
        beside = error.sign() if rule == "sign" else error
        weight = weight - 0.1 * (3.0 * momentum + 0.3 * beside) - 0.05 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-12, atol=1e-12)


def test_frugal_is_adam_on_some_columns_and_signs_on_the_others():
    """Algorithm 1: Adam, begun anew with each choice, and signed gradients beside it."""
    shape = (6, 12)
    grads = [draw(shape, seed) for seed in range(9)]
    frugal = CoordinateSubspace(
        [Adam((0.9, 0.99))], rank=0.25, select="random", period=4, combine="sign", seed=3
    )
    whole = torch.nn.Parameter(torch.zeros(shape).double())
    for k, (actual, memory) in enumerate(steps([frugal, LR(0.1)], grads)):
        columns = memory["right"]
        assert len(columns) == 3
        if k % 4 == 0:
            part = torch.nn.Parameter(whole.detach()[:, columns].clone())
            adam = torch.optim.Adam([part], lr=0.1, betas=(0.9, 0.99))
        part.grad = grads[k][:, columns]
        adam.step()
        with torch.no_grad():
            whole -= 0.1 * grads[k].sign()
            whole[:, columns] = part
        torch.testing.assert_close(actual, whole.detach(), rtol=1e-12, atol=1e-12)


def test_entries_are_a_vector_inside_and_can_be_those_of_all_tensors():
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,))]
    top = CoordinateSubspace([LR(1.0)], rank=3, axis="entries")
    optimizer = Optimizer(weights, VectorProjection([top]))
    for k, weight in enumerate(weights):
        weight.grad = draw(weight.shape, k, torch.float32)
    optimizer.step()
    grad = torch.cat([weight.grad.flatten() for weight in weights])
    moved = torch.cat([weight.detach().flatten() for weight in weights])
    taken = grad.abs().topk(3).indices
    expected = torch.zeros(17).index_copy(0, taken, -grad[taken])
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_a_batch_shares_what_is_chosen(axis):
    grads = [draw((3, 4, 6), seed) for seed in range(3)]
    start = draw((3, 4, 6), 9)
    end, dim = ("left", 1) if axis == "rows" else ("right", 2)
    subspace = CoordinateSubspace(
        [HeavyBall(0.5)], rank=2, axis=axis, period=1, folding="last2", policy="transport"
    )
    others = tuple({0, 1, 2} - {dim})
    weight, momentum = start, torch.zeros(3, 4, 6).double()
    chain = [subspace, LR(0.1), WeightDecay(0.01)]
    for (actual, memory), grad in zip(steps(chain, grads, start), grads, strict=True):
        expected = grad.square().sum(others).topk(2).indices.sort().values
        assert torch.equal(memory[end], expected)
        mask = torch.zeros(3, 4, 6).double().index_fill(dim, expected, 1)
        momentum = mask * (0.5 * momentum + grad)
        weight = weight - 0.1 * momentum - 0.01 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", ["columns", "rows", "entries"])
def test_the_basis_is_columns_of_the_identity(axis):
    end = "left" if axis == "rows" else "right"
    subspace = CoordinateSubspace([LR(1.0)], rank=2, axis=axis)
    ((_, memory),) = steps([subspace], [draw((4, 5))])
    basis = subspace.basis.matrix(memory, end, draw(1))
    length = {"columns": 5, "rows": 4, "entries": 20}[axis]
    assert torch.equal(basis, selector(memory[end], length))


def test_signs_of_bfloat16_are_exact():
    grad = draw((4, 6), 0, torch.float32).bfloat16()
    subspace = CoordinateSubspace([LR(0.0)], rank=2, select="cyclic", combine="sign")
    ((actual, _),) = steps([subspace, LR(0.5)], [grad], torch.ones(4, 6).bfloat16())
    assert torch.equal(actual[:, :2], torch.ones(4, 2).bfloat16())
    assert torch.equal(actual[:, 2:], 1 - 0.5 * grad[:, 2:].sign())


# Memory.


def test_memory_is_the_indices():
    weight = torch.nn.Parameter(draw((30, 20), dtype=torch.float32))
    weight.grad = draw((30, 20), 1, torch.float32)
    optimizer = Optimizer([weight], CoordinateSubspace([Adam()], rank=0.25), LR(0.1))
    optimizer.step()
    rows = {(row.path, row.entry): row.bytes for row in optimizer.memory().rows}
    assert rows["0", "right"] == 5 * 8
    assert rows["0/modules/0", "exp_avg"] == 30 * 5 * 4
    assert not optimizer.memory().notes


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
def test_a_new_rank_acts_in_the_next_step(policy):
    weight = torch.nn.Parameter(draw((8, 6)))
    subspace = CoordinateSubspace([HeavyBall()], rank=2, policy=policy)
    optimizer = Optimizer([weight], subspace, LR(0.1))
    shapes = []
    for rank in (2, 5, 5, 1):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = draw((8, 6))
        optimizer.step()
        shapes.append(tuple(optimizer.state[weight]["0/modules/0/momentum_buffer"].shape))
    assert shapes == [(8, 2), (8, 5), (8, 5), (8, 1)]


@pytest.mark.parametrize("select", ["top", "random", "norm", "cyclic"])
def test_resuming_across_refreshes_is_bitwise(select):
    def build(policy="transport"):
        weights = [torch.nn.Parameter(draw((6, 5), k, torch.float32)) for k in range(2)]
        subspace = CoordinateSubspace(
            [Adam()], rank=2, period=3, select=select, policy=policy, combine="sign"
        )
        return weights, Optimizer(weights, subspace, LR(0.1))

    def go(weights, optimizer, first, last):
        for k in range(first, last):
            for weight in weights:
                weight.grad = draw((6, 5), k, torch.float32)
            optimizer.step()

    weights, optimizer = build()
    go(weights, optimizer, 0, 8)
    for stop in range(1, 8):
        begun, first = build()
        go(begun, first, 0, stop)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        again, second = build()
        second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        for weight, value in zip(again, begun, strict=True):
            weight.data.copy_(value)
        go(again, second, stop, 8)
        assert all(torch.equal(one, other) for one, other in zip(again, weights, strict=True))


def test_a_checkpoint_of_another_seed_is_refused():
    def build(seed):
        weight = torch.nn.Parameter(draw((6, 5)))
        weight.grad = draw((6, 5))
        return Optimizer([weight], CoordinateSubspace([Adam()], seed=seed), LR(0.1))

    optimizer = build(0)
    optimizer.step()
    with pytest.raises(CheckpointError, match="seed"):
        build(1).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("select", ["top", "norm", "random", "cyclic"])
def test_only_what_is_read_must_be_finite(select):
    grad = draw((4, 5)).fill_(torch.nan)
    if select in ("top", "norm"):
        with pytest.raises(StepError, match="Inf or NaN"):
            chosen([grad], select=select)
    else:
        assert chosen([grad], select=select, rank=2)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ArgumentError, {"select": "best"}),
        (ArgumentError, {"axis": "blocks"}),
        (ArgumentError, {"axis": "entries", "combine": "fira"}),
        (ArgumentError, {"axis": "entries", "combine": "apollo_mini"}),
        (ArgumentError, {"rank": 0}),
        (ArgumentError, {"rank": 1.5}),
        (ArgumentTypeError, {"seed": 0.5}),
    ],
)
def test_bad_arguments_are_refused(error, options):
    with pytest.raises(error):
        CoordinateSubspace([Adam()], **options)


def test_docstrings():
    module = importlib.import_module("projcore_lowrank.coordinates")
    assert doctest.testmod(module).failed == 0
