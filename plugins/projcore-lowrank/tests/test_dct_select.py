"""The basis against scipy's transform, steps against dense matrices in float64."""

from __future__ import annotations

import copy
import doctest
import importlib
import io

import numpy as np
import pytest
import scipy.fft
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, StepError
from projcore.modules import LR, Adam, HeavyBall, WeightDecay
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import DCTSelect
from projcore_lowrank.cosines import cosines_of

TAGS = frozenset({"linear", "orthonormal", "data_dependent"})
SUBJECTS = [
    Subject(DCTSelect, f"DCTSelect of {example}", TAGS, {"rank": 2, "stagger": False, **example})
    for example in (
        {},
        {"period": 2, "policy": "transport", "side": "full", "norm": 2},
        {"period": 2, "policy": "reset", "combine": "fira", "side": "reverse_std"},
        {"policy": "transport", "folding": "last2"},
        {"combine": "sign", "error_feedback": True, "source": "momentum", "side": "left"},
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


def dct_matrix(length):
    """The vectors of the DCT-II as columns."""
    rows = scipy.fft.dct(np.eye(length), type=2, norm="ortho", axis=1)
    return torch.from_numpy(rows)


def by_scipy(matrix, rank, norm):
    """The frequencies of the columns of a matrix with the largest norms."""
    spectrum = scipy.fft.dct(matrix.numpy(), type=2, norm="ortho", axis=0)
    sizes = np.linalg.norm(spectrum, ord=norm, axis=1)
    return sorted(np.argsort(-sizes, kind="stable")[:rank].tolist())


@pytest.mark.parametrize("length", [*range(1, 10), 64, 97, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_transform(length, dtype):
    x = draw((3, 2, length), length, dtype)
    expected = scipy.fft.dct(x.double().numpy(), type=2, norm="ortho")
    actual = cosines_of(x)
    assert actual.dtype == dtype
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        actual.double(), torch.from_numpy(expected), rtol=0, atol=tolerance * length**0.5
    )


def test_the_transform_of_bfloat16_is_in_float32():
    x = draw((4, 50)).bfloat16()
    torch.testing.assert_close(cosines_of(x), cosines_of(x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("length", [2, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.bfloat16])
def test_the_basis(length, dtype):
    subspace = DCTSelect([LR(1.0)])
    chosen = torch.arange(0, length, 1 + length // 20)
    memory = {"left": chosen, "left_length": length}
    basis = subspace.basis.matrix(memory, "left", torch.empty(0, dtype=dtype))
    assert basis.dtype == dtype
    expected = dct_matrix(length)[:, chosen].to(dtype)
    eps = torch.finfo(dtype).eps
    atol = 16 * torch.finfo(torch.float64).eps / length**0.5  # scipy rounds, too
    torch.testing.assert_close(basis, expected, rtol=2 * eps, atol=max(atol, eps**2))


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (8, 8), (3, 2, 5)])
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_frequencies_of_the_largest_norm_are_chosen(shape, side, norm, dtype):
    for seed in range(3):
        grad = draw(shape, seed, dtype)
        matrix = grad.reshape(shape[0], -1)
        subspace = DCTSelect([LR(1.0)], rank=2, side=side, norm=norm)
        ((_, memory),) = steps([subspace], [grad])
        for end, seen in (("left", matrix), ("right", matrix.mT)):
            if end in memory:
                assert memory[end].tolist() == by_scipy(seen, 2, norm)
        ends = {end for end in ("left", "right") if end in memory}
        assert len(ends) == 1 + (side == "full")


def test_both_norms_are_not_the_same():
    """One large coefficient has the largest sum of squares, many small ones that of values."""
    spectrum = torch.zeros(8, 4).double()
    spectrum[0, 1] = 3.0
    spectrum[:, 2] = 0.9
    grad = spectrum @ dct_matrix(4).mT
    for norm, expected in ((1, [2]), (2, [1])):
        subspace = DCTSelect([LR(1.0)], rank=1, norm=norm)
        ((_, memory),) = steps([subspace], [grad])
        assert memory["right"].tolist() == expected


def test_of_equal_ones_the_lowest_are_chosen():
    ((_, memory),) = steps([DCTSelect([LR(1.0)], rank=3)], [torch.zeros(4, 6)])
    assert memory["left"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_momentum_against_dense_matrices(policy, shape, dtype):
    grads = [draw(shape, seed, dtype) for seed in range(6)]
    start = draw(shape, 9, dtype)
    end = "left" if shape[0] < shape[1] else "right"
    subspace = DCTSelect([HeavyBall(0.5)], rank=3, period=2, policy=policy, scale=2.0)
    chain = [subspace, LR(0.1), WeightDecay(0.01)]
    weight, momentum, before = start, None, None
    for k, (actual, memory) in enumerate(steps(chain, grads, start)):
        basis = dct_matrix(5)[:, memory[end]].to(dtype)
        low = basis.mT @ (grads[k] if end == "left" else grads[k].mT)
        if momentum is not None and k % 2 == 0 and policy != "keep":
            momentum = basis.mT @ before @ momentum if policy == "transport" else None
        momentum = low if momentum is None else 0.5 * momentum + low
        up = basis @ momentum
        weight = weight - 0.2 * (up if end == "left" else up.mT) - 0.01 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-11, atol=1e-11)
        before = basis


@pytest.mark.parametrize("side", ["std", "full"])
def test_dct_adamw(side):
    """Adam on frequencies chosen in each step, memory following them, with error feedback."""
    shape, beta1, beta2, eps = (6, 10), 0.9, 0.99, 1e-8
    grads = [draw(shape, seed) for seed in range(8)]
    start = draw(shape, 20)
    modules = [
        WeightDecay(0.0),
        DCTSelect(
            [Adam((beta1, beta2), eps)], 2, error_feedback=True, policy="transport", side=side
        ),
        LR(0.1),
    ]
    weight = torch.nn.Parameter(start.clone())
    optimizer = Optimizer([weight], *modules)
    expected, error, first, second, before = start, torch.zeros(shape).double(), None, None, None
    moved = 0
    for t, grad in enumerate(grads, 1):
        weight.grad = grad
        optimizer.step()
        full = grad + error
        left = dct_matrix(6)[:, by_scipy(full, 2, 1)]
        right = (
            dct_matrix(10)[:, by_scipy(full.mT, 2, 1)] if side == "full" else torch.eye(10).double()
        )
        low = left.mT @ full @ right
        if before is None:
            first, second = torch.zeros_like(low), torch.zeros_like(low)
        else:
            one, other = (left.mT @ before[0]).round(), (right.mT @ before[1]).round()
            moved += int(one.diagonal().sum() < 2)
            first, second = one @ first @ other.mT, (one @ second @ other.mT).abs()
        first = beta1 * first + (1 - beta1) * low
        second = beta2 * second + (1 - beta2) * low**2
        step = first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + eps)
        error = full - left @ low @ right.mT
        expected = expected - 0.1 * left @ step @ right.mT
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-9)
        before = left, right
    assert moved > 2


def test_a_batch_shares_its_frequencies():
    grads = [draw((3, 4, 6), seed) for seed in range(3)]
    start = draw((3, 4, 6), 9)
    subspace = DCTSelect([HeavyBall(0.5)], rank=2, folding="last2", policy="reset")
    weight = start
    chain = [subspace, LR(0.1), WeightDecay(0.01)]
    for (actual, memory), grad in zip(steps(chain, grads, start), grads, strict=True):
        side_by_side = torch.cat(list(grad), dim=1)
        assert memory["left"].tolist() == by_scipy(side_by_side, 2, 1)
        basis = dct_matrix(4)[:, memory["left"]]
        weight = weight - 0.1 * basis @ basis.mT @ grad - 0.01 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-11, atol=1e-11)


def test_products_in_another_dtype():
    grad = draw((20, 30), 0, torch.float32)
    exact, rounded = (
        steps([DCTSelect([LR(1.0)], rank=5, compute_dtype=dtype)], [grad])[0][0]
        for dtype in (None, "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


def test_memory_is_the_indices():
    weight = torch.nn.Parameter(draw((30, 20), dtype=torch.float32))
    weight.grad = draw((30, 20), 1, torch.float32)
    optimizer = Optimizer([weight], DCTSelect([Adam()], rank=5), LR(0.1))
    optimizer.step()
    rows = {(row.path, row.entry): row.bytes for row in optimizer.memory().rows}
    assert rows["0", "right"] == 5 * 8
    assert rows["0/modules/0", "exp_avg"] == 30 * 5 * 4
    assert not optimizer.memory().notes


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
def test_a_new_rank_acts_in_the_next_step(policy):
    weight = torch.nn.Parameter(draw((8, 6)))
    optimizer = Optimizer([weight], DCTSelect([HeavyBall()], rank=2, policy=policy), LR(0.1))
    shapes = []
    for rank in (2, 5, 5, 1):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = draw((8, 6))
        optimizer.step()
        shapes.append(tuple(optimizer.state[weight]["0/modules/0/momentum_buffer"].shape))
    assert shapes == [(8, 2), (8, 5), (8, 5), (8, 1)]


def test_resuming_across_refreshes_is_bitwise():
    def build():
        weights = [torch.nn.Parameter(draw((6, 5), k, torch.float32)) for k in range(2)]
        subspace = DCTSelect([Adam()], 2, period=3, policy="transport", error_feedback=True)
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


def test_what_is_learnt_from_must_be_finite():
    with pytest.raises(StepError, match="Inf or NaN"):
        steps([DCTSelect([LR(1.0)], rank=2)], [draw((4, 5)).fill_(torch.inf)])


@pytest.mark.parametrize("options", [{"norm": 3}, {"norm": "1"}, {"rank": 0}, {"period": 0}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ArgumentError):
        DCTSelect([Adam()], **options)


def test_docstrings():
    module = importlib.import_module("projcore_lowrank.cosines")
    assert doctest.testmod(module).failed == 0
