"""The plane against dense matrices in float64, and methods on it done by hand."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, CheckpointError, StepError
from projcore.modules import LBFGS, LR, Adam, HeavyBall, StrongWolfe
from projcore.projections import To
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank.intrinsic_subspace import IntrinsicSubspace, conjugate_gradients

MODULE = "projcore_lowrank.intrinsic_subspace"
KINDS = ("fastfood", "dense", "srht")
SHAPES = ((4, 3), (5,), (), (0, 2), (2, 3, 2))
DOUBLE = {"dtype": torch.float64}
LINEAR = frozenset({"linear"})
SUBJECTS = [
    Subject(
        IntrinsicSubspace,
        f"plane by {kind}",
        LINEAR | {"orthonormal"} if kind == "srht" else LINEAR,
        {"dimension": 2, "kind": kind},
    )
    for kind in KINDS
]


# Two dimensions, because the smallest problem of the laws has few elements.
@parametrize_with_checks(*SUBJECTS)
def test_laws(check):
    check()


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(kind, length, dimension, seed=0):
    """The matrix, column by column."""
    plane = IntrinsicSubspace([LR(1.0)], dimension, kind, seed)
    like = [torch.zeros(length, **DOUBLE)]
    columns = [
        plane.unproject([row], like, None, None, [{}], [{}], "update")[0]
        for row in torch.eye(dimension, **DOUBLE)
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "dimension"), [(31, 1), (31, 5), (64, 16), (300, 33)])
def test_coordinates_and_adjoint_are_those_of_the_dense_matrix(kind, length, dimension):
    plane = IntrinsicSubspace([LR(1.0)], dimension, kind, seed=3)
    matrix = dense(kind, length, dimension, seed=3)
    sizes = (length // 2, length - length // 2)
    parts = [draw(size, seed) for seed, size in enumerate(sizes)]
    x = torch.cat(parts)
    facts = (parts, None, None, [{}, {}], [{}, {}])
    for current in ("grads", "update"):
        (down,) = plane.project(parts, *facts, current)
        torch.testing.assert_close(down, matrix.T @ x, rtol=0, atol=1e-12)
    (inside,) = plane.project(parts, *facts, "params")
    nearest = torch.linalg.lstsq(matrix, x[:, None]).solution[:, 0]
    torch.testing.assert_close(inside, nearest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_columns_have_unit_length(kind, block, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.BLOCK", block * 8)
    matrix = dense(kind, 1000, 8)
    lengths = torch.linalg.vector_norm(matrix, dim=0)
    # Random lengths of 1000 entries vary by 1 / sqrt(2000); Fastfood scales its blocks only.
    tolerance = 0.1 if kind == "fastfood" else 1e-12
    torch.testing.assert_close(lengths, torch.ones(8, **DOUBLE), rtol=0, atol=tolerance)
    assert torch.linalg.matrix_rank(matrix) == 8
    others = matrix.T @ matrix - lengths.square().diag()
    assert others.abs().max() < (1e-12 if kind == "srht" else 0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_and_the_kind_make_the_plane(kind):
    one = dense(kind, 50, 4, seed=1)
    assert torch.equal(one, dense(kind, 50, 4, seed=1))
    others = [dense(kind, 50, 4, seed=2)]
    others += [dense(each, 50, 4, seed=1) for each in KINDS if each != kind]
    for other in others:
        both = torch.cat([one, other], 1)
        assert torch.linalg.matrix_rank(both) > 4


def loss_of(tensors):
    x = torch.cat([tensor.reshape(-1) for tensor in tensors])
    weights = 1 + 0.5 * torch.cos(torch.arange(len(x), **DOUBLE))
    return 0.5 * (weights * (x - torch.sin(1.7 * x + 0.3)).square()).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_adam_inside_is_adam_on_the_coordinates(kind):
    params = [torch.nn.Parameter(draw(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = Optimizer(params, IntrinsicSubspace([Adam()], 6, kind, seed=5), LR(0.05))
    start = [param.detach().clone() for param in params]
    length = sum(param.numel() for param in params)
    matrix = dense(kind, length, 6, seed=5)
    z = torch.zeros(6, **DOUBLE, requires_grad=True)
    by_hand = torch.optim.Adam([z], lr=0.05)
    origin = torch.cat([tensor.reshape(-1) for tensor in start])
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()
        by_hand.zero_grad()
        loss_of([origin + matrix @ z]).backward()
        by_hand.step()
    moved = torch.cat([param.detach().reshape(-1) for param in params])
    torch.testing.assert_close(moved, (origin + matrix @ z).detach(), rtol=0, atol=1e-12)


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    return model.to(dtype)


def closure_of(model):
    dtype = next(model.parameters()).dtype
    inputs = draw((40, 6), 1).to(dtype)
    targets = torch.stack(
        [inputs[:, 0] * inputs[:, 1], inputs[:, 2].sin(), inputs[:, 3:].sum(1)], 1
    )

    def closure(backward=True):
        model.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        if backward:
            loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize("kind", KINDS)
def test_lbfgs_with_a_line_search_trains_a_network_on_the_plane(kind):
    model = network()
    closure = closure_of(model)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    plane = IntrinsicSubspace([LBFGS(), StrongWolfe()], 40, kind, seed=7)
    optimizer = Optimizer(model.parameters(), plane)
    losses = [float(optimizer.step(closure)) for _ in range(25)]
    losses.append(float(closure(backward=False)))
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.35 * losses[0]
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
    matrix = dense(kind, len(moved), 40, seed=7)
    z = torch.linalg.lstsq(matrix, moved[:, None]).solution
    rest = moved - (matrix @ z)[:, 0]
    assert moved.abs().max() > 0.1
    assert rest.abs().max() < 1e-13


SCRIPT = """
import sys
import torch
from projcore import Optimizer
from projcore.modules import LR, Adam
from projcore_lowrank.intrinsic_subspace import IntrinsicSubspace
torch.manual_seed(int(sys.argv[1]))
for kind in ("fastfood", "dense", "srht"):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 50).reshape(5, 10))
    bias = torch.nn.Parameter(torch.linspace(0, 1, 7))
    optimizer = Optimizer([weight, bias], IntrinsicSubspace([Adam()], 9, kind, 11), LR(0.1))
    for _ in range(5):
        weight.grad, bias.grad = weight.detach().sin(), bias.detach().cos()
        optimizer.step()
    print(kind, *(p.detach().numpy().tobytes().hex() for p in (weight, bias)))
"""


def test_the_same_seed_gives_the_same_run_in_a_fresh_process(monkeypatch):
    printed = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(printed), monkeypatch.context() as it:
        it.setattr(sys, "argv", ["", "0"])
        exec(SCRIPT, {})
    command = [sys.executable, "-c", SCRIPT, "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one, other = (text.splitlines() for text in (printed.getvalue(), done.stdout))
    assert one == other
    assert len({line.split()[1] for line in one}) == len(KINDS)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"kind": "dense"}, {"dimension": 4}, {"kind": "srht", "dimension": 2}]
)
@pytest.mark.parametrize("modules", [[LR(0.1)], [Adam(), LR(0.1)]])
def test_a_checkpoint_of_another_plane_is_refused(other, modules):
    def make(**changes):
        weight = torch.nn.Parameter(torch.ones(4, 3))
        weight.grad = torch.ones(4, 3)
        plane = IntrinsicSubspace(modules, **{"dimension": 3, **changes})
        return Optimizer([weight], plane)

    saved, same, changed = make(), make(), make(**other)
    saved.step()
    same.load_state_dict(saved.state_dict())
    with pytest.raises(CheckpointError):
        changed.load_state_dict(saved.state_dict())


def test_a_new_group_makes_another_plane_and_resets_memory():
    weight, later = torch.nn.Parameter(torch.ones(6)), torch.nn.Parameter(torch.ones(6))
    optimizer = Optimizer([weight], IntrinsicSubspace([HeavyBall(0.9)], 3), LR(0.1))
    weight.grad = torch.ones(6)
    optimizer.step()
    before = optimizer.state[weight]["0/modules/0/momentum_buffer"].clone()
    assert before.norm() > 0
    later.grad = torch.ones(6)
    optimizer.add_param_group({"params": [later]})
    optimizer.step()
    buffer = optimizer.state[weight]["0/modules/0/momentum_buffer"]
    expected = dense("fastfood", 12, 3).float().T @ torch.ones(12)
    torch.testing.assert_close(buffer, expected)
    assert optimizer.state[weight]["0/elements"] == 12


def test_a_parameter_without_a_gradient_stays_and_counts_as_zero():
    params = [torch.nn.Parameter(draw(4, seed)) for seed in range(3)]
    start = [param.detach().clone() for param in params]
    optimizer = Optimizer(params, IntrinsicSubspace([LR(1.0)], 3))
    grads = [draw(4, 10), torch.zeros(4, **DOUBLE), draw(4, 12)]
    params[0].grad, params[2].grad = grads[0], grads[2]
    optimizer.step()
    matrix = dense("fastfood", 12, 3)
    step = (matrix @ matrix.T @ torch.cat(grads)).split(4)
    assert torch.equal(params[1].detach(), start[1])
    for i in (0, 2):
        torch.testing.assert_close(params[i].detach(), start[i] - step[i], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_inside_are_float32_at_least(kind):
    weight = torch.nn.Parameter(draw((5, 4)).bfloat16())
    optimizer = Optimizer([weight], IntrinsicSubspace([Adam()], 3, kind), LR(0.1))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["0/modules/0/exp_avg"].dtype == torch.float32
    assert weight.dtype == torch.bfloat16


def test_several_dtypes_are_refused_or_brought_to_one():
    params = [torch.nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64)]
    with pytest.raises(ArgumentError, match=r"several dtypes: torch.float32, torch.float64\."):
        Optimizer(params, IntrinsicSubspace([LR(0.1)], 2))
    optimizer = Optimizer(params, To([IntrinsicSubspace([LR(0.1)], 2)], torch.float64))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all((param != 1).any() for param in params)


def test_too_many_dimensions_are_refused():
    params = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    Optimizer(params, IntrinsicSubspace([LR(0.1)], 10))
    with pytest.raises(ArgumentError, match=r"dimension=11\) was given parameters of 10 elements"):
        Optimizer(params, IntrinsicSubspace([LR(0.1)], 11))


def test_coordinates_that_are_not_found_are_an_error(monkeypatch):
    monkeypatch.setattr(f"{MODULE}.MOST", 3)
    weight = torch.nn.Parameter(draw(20))
    plane = IntrinsicSubspace([LBFGS(), StrongWolfe()], 18)
    optimizer = Optimizer([weight], plane)

    def closure():
        weight.grad = weight.detach().clone()
        return weight.detach().square().sum() / 2

    with pytest.raises(StepError, match=r"dimension=18\) could not compute .*\. Pass a smaller"):
        optimizer.step(closure)
    assert torch.equal(weight.detach(), draw(20))


def test_conjugate_gradients_take_as_many_products_as_there_are_eigenvalues():
    values = torch.tensor([1.0, 7.0, 40.0, 200.0], **DOUBLE)
    turn = torch.linalg.qr(draw((4, 4))).Q
    matrix, b = turn @ values.diag() @ turn.T, draw(4, 1)
    products = 0

    def times(x):
        nonlocal products
        products += 1
        return matrix @ x

    z = conjugate_gradients(times, b)
    torch.testing.assert_close(z, torch.linalg.solve(matrix, b), rtol=0, atol=1e-13)
    assert products <= 1 + 4 + 3  # the first residual, and some more for rounding


def test_parameters_that_are_not_finite_have_no_finite_coordinates():
    plane = IntrinsicSubspace([LR(1.0)], 3)
    x = [torch.full((10,), torch.nan)]
    (z,) = plane.project(x, x, None, None, [{}], [{}], "params")
    assert z.isnan().all()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"dimension": 0}, ArgumentError),
        ({"dimension": 2.5}, ArgumentTypeError),
        ({"seed": -1}, ArgumentError),
        ({"seed": 0.5}, ArgumentTypeError),
        ({"kind": "sparse"}, ArgumentError),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, error):
    ((name, _),) = wrong.items()
    with pytest.raises(error, match=rf"IntrinsicSubspace.*{name}="):
        IntrinsicSubspace([LR(1.0)], **{"dimension": 2, **wrong})


def test_examples():
    done = doctest.testmod(importlib.import_module(MODULE))
    assert done.attempted
    assert not done.failed
