"""Random matrices against their definitions, and steps against dense matrices in float64."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import math
import subprocess
import sys

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, CheckpointError
from projcore.modules import LR, Adam, HeavyBall, WeightDecay
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import RandomSubspace
from projcore_lowrank.random_basis import following

TAGS = frozenset({"linear", "data_dependent", "stochastic"})
ORTHONORMAL = TAGS | {"orthonormal"}
NOTHING = [LR(1.0)]
KINDS = ("gaussian", "rademacher", "orthonormal", "srht")
SUBJECTS = [
    Subject(RandomSubspace, f"RandomSubspace of {example}", tags, {"period": 2, **example})
    for example, tags in (
        ({"rank": 2}, TAGS),
        ({"rank": 1, "kind": "rademacher", "combine": "apollo", "chain": "apollo"}, TAGS),
        ({"rank": 2, "policy": "transport", "side": "full", "store": True}, TAGS),
        ({"rank": 2, "kind": "orthonormal", "combine": "sign", "policy": "reset"}, ORTHONORMAL),
        ({"rank": 2, "kind": "srht", "policy": "transport"}, ORTHONORMAL),
        ({"rank": 1, "kind": "srht", "combine": "fira", "folding": "last2"}, ORTHONORMAL),
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
        seen.append((weight.detach().clone(), memory_of(optimizer, weight)))
    return seen


def memory_of(optimizer, weight):
    """The entries of the projection at position 0, and of what it runs inside by path."""
    saved = copy.deepcopy(dict(optimizer.state[weight]))
    return {key.removeprefix("0/"): value for key, value in saved.items()}


def matrix_of(subspace, memory, end, dtype=torch.float64):
    return subspace.basis.matrix(memory, end, torch.empty(0, dtype=dtype))


def learnt(subspace, end, length, rank, index=0, dtype=torch.float64):
    """The matrix of the first refresh."""
    like = torch.empty(length, 1, dtype=dtype)
    state = {"index": index, **subspace.basis.begin(end, length, rank, (), like)}
    state.update(subspace.basis.learn(end, rank, like, state, {}))
    return matrix_of(subspace, state, end, dtype)


# The matrices.


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("end", ["left", "right"])
def test_the_average_of_the_projector_is_a_multiple_of_the_identity(kind, dtype, end):
    length, rank, count = 6, 3, 500
    average = torch.zeros(length, length, dtype=dtype)
    squares = torch.zeros(length, length, dtype=torch.float64)
    subspace = RandomSubspace(NOTHING, rank=rank, kind=kind, seed=1)
    for index in range(count):
        basis = learnt(subspace, end, length, rank, index, dtype)
        assert basis.shape == (length, rank)
        if kind in ("orthonormal", "srht"):
            eye = torch.eye(rank, dtype=dtype)
            torch.testing.assert_close(basis.mH @ basis, eye, rtol=0, atol=1e-12)
        projector = basis @ basis.mH
        average += projector / count
        squares += projector.abs().square() / count
    factor = rank / length if kind in ("orthonormal", "srht") else 1.0
    error = (squares - average.abs().square()).clamp_min(0).sqrt() / math.sqrt(count)
    deviation = average - factor * torch.eye(length, dtype=dtype)
    assert bool((deviation.abs() < 5 * error + 1e-6).all())  # 36 tests at 5 standard errors
    assert error.max() < 0.06


def test_entries_have_their_distributions():
    signs = learnt(RandomSubspace(NOTHING, kind="rademacher"), "left", 200, 16)
    assert set(signs.flatten().tolist()) == {0.25, -0.25}
    assert abs(signs.mean()) < 5 * 0.25 / math.sqrt(signs.numel())
    normal = learnt(RandomSubspace(NOTHING), "right", 500, 16).flatten() * 4
    assert abs(normal.mean()) < 5 / math.sqrt(normal.numel())
    assert abs(normal.square().mean() - 1) < 5 * math.sqrt(2 / normal.numel())
    assert abs(normal.pow(4).mean() - 3) < 5 * math.sqrt(96 / normal.numel())


@pytest.mark.parametrize("kind", KINDS)
def test_seed_place_and_refresh_each_make_another_matrix(kind):
    def drawn(seed=0, index=0):
        return learnt(RandomSubspace(NOTHING, kind=kind, seed=seed), "left", 20, 4, index)

    grads = [draw((5, 20), seed) for seed in range(2)]
    subspace = RandomSubspace([HeavyBall()], rank=4, period=1, kind=kind)
    (_, one), (_, two) = steps([subspace], grads)
    first, second = (matrix_of(subspace, memory, "left") for memory in (one, two))
    torch.testing.assert_close(drawn(), drawn(), rtol=0, atol=0)
    for other in (drawn(seed=1), drawn(index=1)):
        assert not torch.equal(drawn(), other)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_two_sides_have_two_matrices(kind):
    subspace = RandomSubspace([HeavyBall()], rank=3, side="full", kind=kind)
    ((_, memory),) = steps([subspace], [draw((6, 6))])
    left, right = (matrix_of(subspace, memory, end) for end in ("left", "right"))
    assert not torch.equal(left, right)
    assert not torch.equal(left.flatten(), right.mT.flatten())  # as they are drawn


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_chain_of_apollo(side):
    """The numbers are those that the authors' package draws; see the facts of its parity."""
    shape = (4, 6)
    expected = [1, 505211975917066638, 7574884091489552460]
    assert [following(seed) for seed in expected[:-1]] == expected[1:]
    assert following(3) == 3251329097462014787
    subspace = RandomSubspace(
        [HeavyBall()], rank=2, period=2, seed=1, side=side, chain="apollo", combine="apollo"
    )
    for k, (_, memory) in enumerate(steps([subspace], [draw(shape, k) for k in range(5)])):
        seed = expected[k // 2]
        assert memory["key"] == seed
        generator = torch.Generator().manual_seed(seed)
        size = (4, 2) if side == "left" else (2, 6)
        drawn = (torch.randn(size, generator=generator) / math.sqrt(2)).double()
        basis = matrix_of(subspace, memory, side)
        assert torch.equal(basis, drawn if side == "left" else drawn.mT)


def test_the_chain_of_apollo_counts_tensors():
    weights = [torch.nn.Parameter(draw((3, 4), k)) for k in range(3)]
    subspace = RandomSubspace([Adam()], rank=1, seed=1, chain="apollo", combine="apollo_mini")
    optimizer = Optimizer(weights, subspace)
    for weight in weights:
        weight.grad = draw((3, 4))
    optimizer.step()
    assert [memory_of(optimizer, weight)["key"] for weight in weights] == [1, 2, 3]


def test_a_matrix_has_its_basis_whichever_others_have_a_gradient():
    """It is that of its parameter, not that of its place among those that a step is about."""
    steps = []
    for alone in (False, True):
        weights = [torch.nn.Parameter(draw((6, 8), k)) for k in range(3)]
        optimizer = Optimizer(weights, RandomSubspace(NOTHING, rank=2))
        for weight in weights[2:] if alone else weights:
            weight.grad = draw((6, 8), 3)
        before = [weight.detach().clone() for weight in weights]
        optimizer.step()
        steps.append([old - new.detach() for old, new in zip(before, weights, strict=True)])
    together, by_itself = steps
    assert torch.equal(by_itself[2], together[2])
    assert not torch.equal(together[2], together[0])


def test_other_processes_draw_the_same():
    program = (
        "import torch; from projcore_lowrank import RandomSubspace\n"
        "from projcore.modules import LR; NOTHING = [LR(1.0)]\n"
        "torch.set_num_threads(1); like = torch.empty(33, 1)\n"
        f"for kind in {KINDS}:\n"
        "    subspace = RandomSubspace(NOTHING, kind=kind, seed=5)\n"
        "    state = {'index': 3, **subspace.basis.begin('left', 33, 4, (), like)}\n"
        "    state.update(subspace.basis.learn('left', 4, like, state, {}))\n"
        "    print(state['key'], subspace.basis.matrix(state, 'left', like).flatten().tolist())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for line, kind in zip(run.stdout.splitlines(), KINDS, strict=True):
        subspace = RandomSubspace(NOTHING, kind=kind, seed=5)
        numbers = learnt(subspace, "left", 33, 4, 3, torch.float32)
        assert line.partition(" ")[2] == str(numbers.flatten().tolist())


# The steps.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_momentum_against_dense_matrices(kind, shape, dtype, policy):
    grads = [draw(shape, seed, dtype) for seed in range(5)]
    start = draw(shape, 9, dtype)
    end = "left" if shape[0] < shape[1] else "right"
    subspace = RandomSubspace(
        [HeavyBall(0.5)], rank=2, period=2, kind=kind, scale=3.0, policy=policy
    )
    chain = [subspace, LR(0.1), WeightDecay(0.01)]
    weight, momentum, before = start, None, None
    for k, (actual, memory) in enumerate(steps(chain, grads, start)):
        basis = matrix_of(subspace, memory, end, dtype)
        grad = grads[k] if end == "left" else grads[k].mH
        if momentum is not None and k % 2 == 0:
            if policy == "reset":
                momentum = None
            elif policy == "transport":
                momentum = basis.mH @ before @ momentum
        low = basis.mH @ grad
        momentum = low if momentum is None else 0.5 * momentum + low
        up = 3.0 * basis @ momentum
        weight = weight - 0.1 * (up if end == "left" else up.mH) - 0.01 * weight
        torch.testing.assert_close(actual, weight, rtol=1e-10, atol=1e-10)
        before = basis


@pytest.mark.parametrize("kind", ["orthonormal", "srht"])
def test_signs_with_error_feedback_against_dense_matrices(kind):
    grads = [draw((4, 9), seed) for seed in range(4)]
    subspace = RandomSubspace(
        [HeavyBall(0.5)],
        rank=2,
        period=2,
        kind=kind,
        combine="sign",
        residual_scale=0.2,
        error_feedback=True,
    )
    weight, momentum, error = torch.zeros(4, 9).double(), 0.0, 0.0
    for (actual, memory), grad in zip(steps([subspace, LR(0.1)], grads), grads, strict=True):
        basis = matrix_of(subspace, memory, "left")
        grad = grad + error
        momentum = 0.5 * momentum + basis.mT @ grad
        error = grad - basis @ basis.mT @ grad
        weight = weight - 0.1 * (basis @ momentum + 0.2 * error.sign())
        torch.testing.assert_close(actual, weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "full"])
def test_parameters_are_read_by_least_squares(kind, side):
    subspace = RandomSubspace([HeavyBall()], rank=3, side=side, kind=kind, seed=2)
    ((_, memory),) = steps([subspace], [draw((8, 7))])
    point = draw((8, 7), 5)
    (inside,) = subspace.project(
        [point], [point], None, None, [memory], [subspace.defaults], "params"
    )
    expected = point
    for end in ("left", "right"):
        if end in memory:
            basis = matrix_of(subspace, memory, end)
            seen = expected if end == "left" else expected.mT
            found = torch.linalg.lstsq(basis, seen).solution
            expected = found if end == "left" else found.mT
    torch.testing.assert_close(inside, expected, rtol=1e-9, atol=1e-9)


def test_columns_that_depend_on_each_other_are_read_by_the_pseudo_inverse():
    for seed in range(20):
        subspace = RandomSubspace([HeavyBall()], rank=2, side="left", kind="rademacher", seed=seed)
        ((_, memory),) = steps([subspace], [draw((2, 7))])
        basis = matrix_of(subspace, memory, "left")
        point = draw((2, 7), seed)
        (inside,) = subspace.project(
            [point], [point], None, None, [memory], [subspace.defaults], "params"
        )
        torch.testing.assert_close(inside, torch.linalg.pinv(basis) @ point, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "full"])
def test_a_batch_shares_a_matrix(kind, side):
    grads = [draw((2, 3, 5, 6), seed) for seed in range(3)]
    subspace = RandomSubspace(
        [HeavyBall()], rank=2, period=2, kind=kind, side=side, folding="last2", policy="transport"
    )
    alone = RandomSubspace(
        [HeavyBall()], rank=2, period=2, kind=kind, side=side, policy="transport"
    )
    chain = [LR(0.1), WeightDecay(0.1)]
    together = steps([subspace, *chain], grads, draw((2, 3, 5, 6), 9))[-1][0]
    for i in range(2):
        for j in range(3):
            start = draw((2, 3, 5, 6), 9)[i, j]
            (*_, (weight, _)) = steps([alone, *chain], [grad[i, j] for grad in grads], start)
            torch.testing.assert_close(together[i, j], weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_a_rounded_step(kind):
    grads = [draw((16, 24), seed, torch.float32) for seed in range(2)]
    rounded = [grad.bfloat16() for grad in grads]
    chain = lambda: [RandomSubspace([HeavyBall()], rank=4, period=1, kind=kind), LR(0.1)]  # noqa: E731
    expected = steps(chain(), [grad.float() for grad in rounded])[-1][0]
    actual = steps(chain(), rounded)[-1][0]
    assert actual.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (actual.float() - expected).abs().max() < 0.03 * scale


# Memory.


def test_no_number_of_a_matrix_is_in_memory():
    weight = torch.nn.Parameter(draw((30, 20), dtype=torch.float32))
    weight.grad = draw((30, 20), 1, torch.float32)
    sizes = {}
    for store in (False, True):
        optimizer = Optimizer([weight], RandomSubspace([Adam()], rank=4, store=store), LR(0.1))
        optimizer.step()
        rows = {(row.path, row.entry): row.bytes for row in optimizer.memory().rows}
        sizes[store] = rows["0", "right"]
        assert rows["0/modules/0", "exp_avg"] == 30 * 4 * 4
    assert sizes == {False: 0, True: 20 * 4 * 4}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_would_be_drawn(kind):
    grads = [draw((7, 9), seed) for seed in range(5)]
    options = {"rank": 3, "period": 2, "kind": kind, "policy": "transport", "side": "full"}
    drawn, stored = (
        [w for w, _ in steps([RandomSubspace([Adam()], store=store, **options), LR(0.1)], grads)]
        for store in (False, True)
    )
    torch.testing.assert_close(drawn, stored, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
@pytest.mark.parametrize("store", [False, True])
def test_a_new_rank_acts_in_the_next_step(policy, store):
    weight = torch.nn.Parameter(draw((8, 6)))
    subspace = RandomSubspace([HeavyBall()], rank=2, policy=policy, store=store)
    optimizer = Optimizer([weight], subspace, LR(0.1))
    shapes = []
    for rank in (2, 5, 5, 1):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = draw((8, 6))
        optimizer.step()
        shapes.append(tuple(memory_of(optimizer, weight)["modules/0/momentum_buffer"].shape))
    assert shapes == [(8, 2), (8, 5), (8, 5), (8, 1)]


@pytest.mark.parametrize("chain", ["mixed", "apollo"])
def test_resuming_across_refreshes_is_bitwise(chain):
    def run(count, saved=None):
        weights = [torch.nn.Parameter(draw((6, 5), k, torch.float32)) for k in range(2)]
        subspace = RandomSubspace([Adam()], rank=2, period=3, seed=1, chain=chain, kind="srht")
        optimizer = Optimizer(weights, subspace, LR(0.1))
        first = 0
        if saved is not None:
            loaded = torch.load(io.BytesIO(saved), weights_only=True)
            optimizer.load_state_dict(loaded["optimizer"])
            for weight, value in zip(weights, loaded["weights"], strict=True):
                weight.data.copy_(value)
            first = loaded["first"]
        for k in range(first, count):
            for weight in weights:
                weight.grad = draw((6, 5), k, torch.float32)
            optimizer.step()
        file = io.BytesIO()
        values = [weight.detach() for weight in weights]
        state = {"optimizer": optimizer.state_dict(), "weights": values, "first": count}
        torch.save(state, file)
        return values, file.getvalue()

    expected, _ = run(8)
    for stop in range(1, 8):
        _, saved = run(stop)
        resumed, _ = run(8, saved)
        for one, other in zip(resumed, expected, strict=True):
            assert torch.equal(one, other)


def test_a_checkpoint_of_another_seed_is_refused():
    def build(seed):
        weight = torch.nn.Parameter(draw((6, 5)))
        weight.grad = draw((6, 5))
        return Optimizer([weight], RandomSubspace([Adam()], rank=2, seed=seed), LR(0.1))

    optimizer = build(0)
    optimizer.step()
    with pytest.raises(CheckpointError, match="seed"):
        build(1).load_state_dict(optimizer.state_dict())
    build(0).load_state_dict(optimizer.state_dict())


def test_what_comes_in_is_not_looked_at():
    grads = [torch.full((4, 5), torch.nan).double(), draw((4, 5))]
    subspace = RandomSubspace([LR(1.0)], rank=2, period=1)
    assert len(steps([subspace], grads)) == 2


# Arguments.


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize(
    "options",
    [{"combine": "sign"}, {"combine": "fira"}, {"error_feedback": True}],
)
def test_what_needs_orthonormal_columns_is_refused_without(kind, options):
    with pytest.raises(ArgumentError, match="orthonormal"):
        RandomSubspace(NOTHING, kind=kind, **options)
    RandomSubspace(NOTHING, kind="orthonormal", **options)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ArgumentError, {"kind": "normal"}),
        (ArgumentError, {"chain": "flora"}),
        (ArgumentError, {"seed": -1}),
        (ArgumentTypeError, {"seed": 1.0}),
        (ArgumentTypeError, {"seed": True}),
        (ArgumentError, {"rank": 0}),
        (ArgumentError, {"period": 0}),
    ],
)
def test_bad_arguments_are_refused(error, options):
    with pytest.raises(error):
        RandomSubspace(NOTHING, **options)


def test_docstrings():
    module = importlib.import_module("projcore_lowrank.random_basis")
    assert doctest.testmod(module).failed == 0
