"""The core against dense Kronecker matrices in float64, and the bases against numpy's SVD."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, StepError
from projcore.modules import LR, Adam, HeavyBall
from projcore.projections import Stack
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank._modes import multiply, multiply_squares, unfold
from projcore_lowrank.tucker import Tucker, hooi, hosvd

DOUBLE = {"dtype": torch.float64}
SHAPE, RANK = (4, 3, 5), (2, 2, 3)
TAGS = frozenset({"linear", "orthonormal", "data_dependent"})
# The problems of some laws have no tensor of more than two sides. Of matrices, ranks of 2 would
# make cores that are diagonal but for rounding, of which Adam and other methods make steps.
EXAMPLES = {
    "one rank": {"rank": 1, "period": 2, "min_ndim": 2},
    "one side of matrices": {"rank": 3, "period": 2, "min_ndim": 2, "policy": "transport"},
    "iterations": {
        "rank": 0.3,
        "period": 3,
        "min_ndim": 2,
        "refresh": "hooi",
        "policy": "reset",
        "source": "gradient",
    },
}
SUBJECTS = [Subject(Tucker, f"tucker, {name}", TAGS, each) for name, each in EXAMPLES.items()]


@parametrize_with_checks(*SUBJECTS)
def test_laws(check):
    check()


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(matrices):
    return reduce(torch.kron, matrices)


def whole(bases, shape):
    """The bases, with the identity for sides that are whole."""
    return [
        torch.eye(side, **DOUBLE) if basis is None else basis
        for side, basis in zip(shape, bases, strict=True)
    ]


def by_numpy(tensor, ranks):
    """The projector on the leading left singular subspace of each unfolding."""
    made = []
    for k, rank in enumerate(ranks):
        rows = np.moveaxis(tensor.numpy(), k, 0).reshape(tensor.shape[k], -1)
        u = np.linalg.svd(rows, full_matrices=False)[0][:, :rank]
        made.append(torch.from_numpy(u @ u.conj().T))
    return made


def steps(modules, grads, shape=SHAPE, **options):
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=grads[0].dtype))
    optimizer = Optimizer([{"params": [weight], **options}], *modules)
    seen = []
    for grad in grads:
        weight.grad = grad
        optimizer.step()
        memory = dict(optimizer.state[weight])
        seen.append({key: value for key, value in memory.items() if "basis" in key})
    return weight.detach(), seen, optimizer


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(4, 3, 5), (6, 2, 2), (3, 3, 2, 2)])
def test_bases_are_the_leading_singular_vectors_of_the_unfoldings(shape, dtype):
    tensor = draw(shape, dtype=dtype)
    ranks = [2] * len(shape)
    expected = by_numpy(tensor, ranks)
    for basis, projector in zip(hosvd(tensor, ranks), expected, strict=True):
        torch.testing.assert_close(basis @ basis.mH, projector, rtol=0, atol=1e-13)
        largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        torch.testing.assert_close(largest, largest.abs().to(dtype), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_map_is_the_kronecker_product_of_the_bases(dtype):
    grad = draw(SHAPE, dtype=dtype)
    moved, (seen,), _ = steps([Tucker([LR(1.0)], RANK)], [grad])
    u = dense([seen[f"0/basis{k}"] for k in range(3)])
    assert u.shape == (60, 12)
    torch.testing.assert_close(moved.flatten(), -u @ u.mH @ grad.flatten(), rtol=0, atol=1e-13)
    projectors = dense(by_numpy(grad, RANK))
    torch.testing.assert_close(moved.flatten(), -projectors @ grad.flatten(), rtol=0, atol=1e-13)


def test_iterations_never_lessen_the_core_and_end_where_each_basis_is_best():
    tensor, ranks = draw((5, 4, 6)), [2, 1, 2]
    bases = hosvd(tensor, ranks)
    norms = []
    for _ in range(40):
        norms.append(multiply(tensor, [basis.mT for basis in bases]).norm())
        bases = hooi(tensor, bases)
    assert all(after >= before - 1e-13 for before, after in pairwise(norms))
    assert norms[-1] > norms[0] + 1e-3
    for k, basis in enumerate(bases):
        others = [None if j == k else other.mT for j, other in enumerate(bases)]
        rest = multiply(tensor, others)
        projector = by_numpy(rest, ranks)[k]
        torch.testing.assert_close(basis @ basis.mT, projector, rtol=0, atol=1e-6)


def test_the_count_of_iterations():
    grad = draw((5, 4, 6))
    expected = hosvd(grad, [2, 1, 2])
    for _ in range(3):
        expected = hooi(grad, expected)
    tucker = Tucker([LR(1.0)], (2, 1, 2), refresh="hooi", iterations=3)
    _, (seen,), _ = steps([tucker], [grad], (5, 4, 6))
    for k, basis in enumerate(expected):
        assert torch.equal(seen[f"0/basis{k}"], basis)


def test_of_a_matrix_the_core_holds_the_singular_values():
    grad = draw((5, 4))
    u, s, vh = torch.linalg.svd(grad, full_matrices=False)
    moved, _, _ = steps([Tucker([LR(1.0)], 2, min_ndim=2)], [grad], (5, 4))
    torch.testing.assert_close(-moved, u[:, :2] * s[:2] @ vh[:2], rtol=0, atol=1e-13)


def adam_by_hand(grads, policy, period, betas=(0.9, 0.95), eps=1e-8, lr=0.1):
    """Adam in the core, with dense matrices."""
    x = torch.zeros(math.prod(SHAPE), **DOUBLE)
    u = mean = variance = None
    for step, grad in enumerate(grads):
        if step % period == 0:
            new = dense(hosvd(grad, RANK))
            if u is None or policy == "reset":
                mean = variance = torch.zeros(new.shape[1], **DOUBLE)
                count = 0
            elif policy == "transport":
                change = new.T @ u
                mean, variance = change @ mean, change**2 @ variance
            u = new
        z = u.T @ grad.flatten()
        count += 1
        mean = betas[0] * mean + (1 - betas[0]) * z
        variance = betas[1] * variance + (1 - betas[1]) * z**2
        root = (variance / (1 - betas[1] ** count)).sqrt() + eps
        x = x - lr * u @ (mean / (1 - betas[0] ** count) / root)
    return x.reshape(SHAPE)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_adam_inside_follows_the_policy(policy):
    grads = [draw(SHAPE, seed) for seed in range(7)]
    inner = Tucker([Adam((0.9, 0.95))], RANK, period=3, policy=policy)
    actual, _, _ = steps([inner, LR(0.1)], grads)
    torch.testing.assert_close(actual, adam_by_hand(grads, policy, 3), rtol=0, atol=1e-12)
    others = {"keep", "reset", "transport"} - {policy}
    assert all((actual - adam_by_hand(grads, each, 3)).abs().max() > 1e-3 for each in others)


def test_variances_of_complex_numbers_are_those_of_what_is_multiplied():
    x = torch.complex(draw((2, 3, 4), 1).square(), draw((2, 3, 4), 2).square())
    matrix = draw((2, 3), 3, torch.complex128)
    moved = multiply_squares(x, [None, matrix, None])
    # The real map of (real, imaginary), squared.
    a, b = matrix.real**2, matrix.imag**2
    block = torch.cat([torch.cat([a, b], 1), torch.cat([b, a], 1)])
    parts = torch.cat([unfold(x.real, 1), unfold(x.imag, 1)])
    expected = block @ parts
    torch.testing.assert_close(
        torch.cat([unfold(moved.real, 1), unfold(moved.imag, 1)]), expected, rtol=0, atol=1e-13
    )


def test_bases_change_with_the_period():
    grads = [draw(SHAPE, seed) for seed in range(7)]
    _, seen, _ = steps([Tucker([LR(1.0)], RANK, period=3)], grads)
    bases = [each["0/basis0"] for each in seen]
    assert [i for i in range(1, 7) if not torch.equal(bases[i], bases[i - 1])] == [3, 6]


def test_learnt_from_the_gradient_or_from_the_update():
    grads = [draw(SHAPE, seed) for seed in range(3)]
    bases = {}
    for source in ("update", "gradient"):
        modules = [HeavyBall(0.9), Tucker([LR(1.0)], RANK, period=1, source=source)]
        bases[source] = [each["1/basis0"] for each in steps(modules, grads)[1]]
    expected = hosvd(grads[-1], RANK)[0]
    assert torch.equal(bases["gradient"][-1], expected)
    assert not torch.allclose(bases["update"][-1], expected)


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ((8, 6, 3, 3), 4, [4, 4, None, None]),
        ((8, 6, 3, 3), 0.5, [4, 3, 2, 2]),
        ((8, 6, 3, 3), (2, 0.5, None, 1), [2, 3, None, 1]),
        ((8, 2, 2), 7, [4, None, None]),
        ((8, 2, 2), 1.0, [4, None, None]),
        ((8, 2, 2), 0.01, [1, 1, 1]),
        ((3, 1, 4), 2, [2, None, 2]),
    ],
)
def test_ranks(shape, rank, expected):
    _, (seen,), optimizer = steps([Tucker([HeavyBall(0.9)], rank)], [draw(shape)], shape)
    kept = [seen[f"0/basis{k}"] for k in range(len(shape))]
    assert [basis.shape[1] if basis.numel() else None for basis in kept] == expected
    sides = tuple(side if r is None else r for side, r in zip(shape, expected, strict=True))
    (memory,) = optimizer.state.values()
    (buffer,) = [value for key, value in memory.items() if "modules" in key and value.ndim]
    assert buffer.shape == sides
    for basis in kept:
        if basis.numel():
            eye = torch.eye(basis.shape[1], **DOUBLE)
            torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rank", [None, 5, (4, None, 5)])
def test_a_tensor_that_stays_whole_passes(rank):
    grads = [draw(SHAPE, seed) for seed in range(3)]
    weight, other = (torch.nn.Parameter(torch.zeros(SHAPE, **DOUBLE)) for _ in range(2))
    groups = [{"params": [weight], "rank": rank}, {"params": [other]}]
    optimizer = Optimizer(groups, Tucker([Adam()], 2), LR(0.1))
    for grad in grads:
        weight.grad = other.grad = grad
        optimizer.step()
    expected, _, _ = steps([Adam(), LR(0.1)], grads)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=1e-14)
    assert not any("basis" in key for key in optimizer.state[weight])


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
@pytest.mark.parametrize("after", [(3, 2, 2), (2, None, 3), 1, (None, 1, None)])
def test_the_rank_may_change_on_the_way(after, policy):
    grads = [draw(SHAPE, seed) for seed in range(6)]
    weight = torch.nn.Parameter(torch.zeros(SHAPE, **DOUBLE))
    modules = [Tucker([HeavyBall(0.9)], RANK, period=100, policy=policy), LR(0.1)]
    optimizer = Optimizer([weight], *modules)
    for step, grad in enumerate(grads):
        if step == 3:
            optimizer.param_groups[0]["rank"] = after
        weight.grad = grad
        optimizer.step()

    x, u = torch.zeros(60, **DOUBLE), dense(hosvd(grads[0], RANK))
    velocity = torch.zeros(12, **DOUBLE)
    for step, grad in enumerate(grads):
        if step == 3:
            ranks = [after] * 3 if isinstance(after, int) else after
            new = dense(whole(hosvd(grad, ranks), SHAPE))
            velocity = new.T @ u @ velocity if policy != "reset" else torch.zeros(new.shape[1])
            u = new
        velocity = 0.9 * velocity + u.T @ grad.flatten()
        x = x - 0.1 * u @ velocity
    torch.testing.assert_close(weight.detach().flatten(), x, rtol=0, atol=1e-12)


def test_scale():
    grads = [draw(SHAPE, seed) for seed in range(3)]
    plain, _, _ = steps([Tucker([Adam()], RANK)], grads)
    scaled, _, _ = steps([Tucker([Adam()], RANK, scale=0.25)], grads)
    torch.testing.assert_close(scaled, 0.25 * plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_learnt_from(bad):
    good, other, poisoned = draw(SHAPE), draw(SHAPE, 1), draw(SHAPE, 2)
    poisoned[0, 0, 0] = bad
    weight = torch.nn.Parameter(torch.zeros(SHAPE, **DOUBLE))
    optimizer = Optimizer([weight], Tucker([HeavyBall(0.9)], RANK, period=1))
    weight.grad = good
    optimizer.step()
    point = weight.detach().clone()
    memory = {key: torch.as_tensor(v).clone() for key, v in optimizer.state[weight].items()}
    weight.grad = poisoned
    with pytest.raises(StepError, match=r"shape \(4, 3, 5\) .* Inf or NaN, .*\. Skip this step"):
        optimizer.step()
    assert torch.equal(weight.detach(), point)
    for key, value in optimizer.state[weight].items():
        assert torch.equal(torch.as_tensor(value), memory[key])

    keeping = Tucker([LR(1.0)], RANK, period=2, nonfinite="skip")
    # Due at the steps 0, 2 and 4, and again after one that was not finite.
    grads = [good, good, poisoned, other, good]
    _, seen, _ = steps([keeping], grads)
    bases = [each["0/basis0"] for each in seen]
    expected = [hosvd(each, RANK)[0] for each in (good, other)]
    assert all(torch.equal(basis, expected[0]) for basis in (*bases[:3], bases[4]))
    assert torch.equal(bases[3], expected[1])
    _, (seen, later), _ = steps([keeping], [poisoned, good])
    assert torch.equal(seen["0/basis0"], torch.eye(4, 2, **DOUBLE))
    assert torch.equal(later["0/basis0"], expected[0])


@pytest.mark.parametrize("refresh", ["hosvd", "hooi"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128]
)
def test_bad_input_is_refused_before_anything_changes(dtype, stacked, refresh):
    """Also one number among many, of the second tensor, or of an imaginary part; what overflows."""
    params = [torch.nn.Parameter(draw(SHAPE, i).to(dtype)) for i in range(2)]
    tucker = Tucker([Adam()], RANK, period=1, refresh=refresh)
    optimizer = Optimizer(params, Stack([tucker]) if stacked else tucker, LR(0.1))
    skipping = Tucker([Adam()], RANK, period=1, refresh=refresh, nonfinite="skip")

    largest = torch.finfo(dtype).max

    def give(value=None):
        for i, param in enumerate(params):
            param.grad = draw(SHAPE, 5 + i).to(dtype)
        if value is not None:
            count = 3 if value == largest else 1  # it is their sum that overflows
            params[1].grad[1, 2, :count] = value

    give()
    optimizer.step()
    before = copy.deepcopy([params, optimizer.state_dict()["state"]])
    refused = r"shape \(4, 3, 5\) that .*\. Bases .*\. Skip this step"
    values = [math.nan, -math.inf] + ([complex(0, math.nan)] if dtype.is_complex else [])
    for value in values + ([] if dtype == torch.float16 else [largest]):
        give(value)
        with pytest.raises(StepError, match=refused):
            optimizer.step()
        assert all(map(torch.equal, params, before[0]))
        for i, entries in optimizer.state_dict()["state"].items():
            assert entries.keys() == before[1][i].keys()
            for key, entry in entries.items():
                assert torch.equal(torch.as_tensor(entry), torch.as_tensor(before[1][i][key])), key
        others = [torch.nn.Parameter(param.detach().clone()) for param in params]
        keeping = Optimizer(others, Stack([skipping]) if stacked else skipping, LR(0.1))
        for other, param in zip(others, params, strict=True):
            other.grad = param.grad
        keeping.step()
        memory = [pair for each in keeping.state.values() for pair in each.items()]
        bases = [value for key, value in memory if "basis" in key]
        assert len(bases) == 6
        assert all(bool(basis.isfinite().all()) for basis in bases)


@pytest.mark.parametrize(("dtype", "power"), [(torch.float16, 12), (torch.float32, 100)])
def test_what_is_large_is_learnt_from(dtype, power):
    """Though its squares overflow, or in float16 its sum."""
    grad = draw(SHAPE).to(dtype)
    _, (plain,), _ = steps([Tucker([LR(1.0)], RANK)], [grad])
    _, (large,), _ = steps([Tucker([LR(1.0)], RANK)], [2.0**power * grad])
    torch.testing.assert_close(plain["0/basis0"], large["0/basis0"])


def test_low_precision_is_learnt_in_float32():
    grad = draw(SHAPE).bfloat16()
    moved, (seen,), optimizer = steps([Tucker([HeavyBall(0.9)], RANK)], [grad])
    assert seen["0/basis0"].dtype == torch.float32
    (memory,) = optimizer.state.values()
    assert memory["0/modules/0/momentum_buffer"].dtype == moved.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 1.5},
        {"rank": (2, 0.0, None)},
        {"period": 0},
        {"scale": 0.0},
        {"iterations": 0},
        {"min_ndim": 1},
        {"refresh": "svd"},
        {"policy": "drop"},
        {"source": "loss"},
        {"nonfinite": "ignore"},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(ArgumentError, match=rf"Tucker.*{name}="):
        Tucker([LR(1.0)], **{"rank": 2, **wrong})


def test_a_tuple_of_ranks_is_for_tensors_of_as_many_sides():
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 5), (4, 3, 3, 3))]
    with pytest.raises(ArgumentError, match=r"shape \(4, 3, 3, 3\)\. .*\. Put such tensors"):
        Optimizer(params, Tucker([LR(1.0)], RANK))


def test_examples():
    done = doctest.testmod(importlib.import_module("projcore_lowrank.tucker"))
    assert done.attempted
    assert not done.failed
