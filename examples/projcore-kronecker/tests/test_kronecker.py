"""The rotation as a dense matrix in float64, and methods inside it done by hand."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore_kronecker import Kronecker

M, N = 4, 3
BETA, PERIOD, STEPS = 0.6, 2, 7
DOUBLE = {"dtype": torch.float64}
TARGET = torch.linspace(-1, 1, M * N, **DOUBLE).reshape(M, N).sin()
MIXTURE = torch.eye(M, **DOUBLE) + torch.ones(M, M, **DOUBLE).tril()


def gradient(weight):
    """The gradient of ||mixture (weight - target)||^2 / 2, with a bend in it."""
    return MIXTURE.T @ MIXTURE @ (weight - TARGET) + weight.sin()


def train(*modules, steps=STEPS, after_step=lambda optimizer, weight: None):
    weight = torch.nn.Parameter(torch.ones(M, N, **DOUBLE))
    optimizer = Optimizer([weight], *modules)
    for _ in range(steps):
        weight.grad = gradient(weight.detach())
        optimizer.step()
        after_step(optimizer, weight)
    return weight.detach()


def by_hand(adam: bool, lr=0.1, betas=(0.9, 0.95), eps=1e-8):
    """Steps on z -> f(x + U (z - z0)) with U = kron(left, right), all elements in a row."""
    x, u = torch.ones(M * N, **DOUBLE), torch.eye(M * N, **DOUBLE)
    left, right = torch.zeros(M, M, **DOUBLE), torch.zeros(N, N, **DOUBLE)
    mean, variance = torch.zeros(M * N, **DOUBLE), torch.zeros(M * N, **DOUBLE)
    for step in range(STEPS):
        g = gradient(x.reshape(M, N))
        if step and step % PERIOD == 0:
            new = torch.kron(torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1])
            mean = new.T @ u @ mean
            variance = (new.T @ u @ variance.diag() @ u.T @ new).diagonal()
            u = new
        left = BETA * left + (1 - BETA) * g @ g.T
        right = BETA * right + (1 - BETA) * g.T @ g
        z = u.T @ g.flatten()
        if adam:
            mean = betas[0] * mean + (1 - betas[0]) * z
            variance = betas[1] * variance + (1 - betas[1]) * z**2
            unbiased = variance / (1 - betas[1] ** (step + 1))
            z = mean / (1 - betas[0] ** (step + 1)) / (unbiased.sqrt() + eps)
        x = x - lr * u @ z
    return x.reshape(M, N)


def around(modules, **changes):
    return Kronecker(modules, **{"period": PERIOD, "beta": BETA, **changes})


def test_adam_inside_is_adam_on_the_rotated_problem():
    inside = train(around(["adam(betas=(0.9, 0.95), eps=1e-8)"]), "lr(0.1)")
    torch.testing.assert_close(inside, by_hand(adam=True), rtol=0, atol=1e-12)
    outside = train("adam(betas=(0.9, 0.95), eps=1e-8)", "lr(0.1)")
    assert (inside - outside).abs().max() > 1e-2


def test_gradient_descent_inside_is_gradient_descent():
    inside = train(around(["lr(0.01)"]))
    torch.testing.assert_close(inside, train("lr(0.01)"), rtol=0, atol=1e-13)
    torch.testing.assert_close(inside, by_hand(adam=False, lr=0.01), rtol=0, atol=1e-13)


@pytest.mark.parametrize("modules", [["heavy_ball()"], ["heavy_ball()", "clip_norm(0.5)"]])
def test_momentum_follows_the_bases(modules):
    inside = train(around(modules), "lr(0.01)")
    torch.testing.assert_close(inside, train(*modules, "lr(0.01)"), rtol=0, atol=1e-13)


def test_the_map_is_the_kronecker_product_of_eigenbases():
    seen = []

    def look(optimizer, weight):
        memory = optimizer.state[weight]
        seen.append({name: memory[f"0/{name}"] for name in ("left", "right", "left_average")})

    train(around(["lr(0.01)"]), after_step=look)
    bases = [step["left"] for step in seen]
    changed = [i for i in range(1, STEPS) if not torch.equal(bases[i], bases[i - 1])]
    assert changed == [2, 4, 6]
    torch.testing.assert_close(bases[0], torch.eye(M, **DOUBLE))
    rotated = bases[6].T @ seen[5]["left_average"] @ bases[6]
    torch.testing.assert_close(rotated, rotated.diagonal().diag(), rtol=0, atol=1e-12)

    x = gradient(torch.ones(M, N, **DOUBLE))
    u = torch.kron(seen[-1]["left"], seen[-1]["right"])
    torch.testing.assert_close(u.T @ u, torch.eye(M * N, **DOUBLE))
    arguments = ([x], None, None, [seen[-1]], [{}], "update")
    (inside,) = around("lr(1)").project([x], *arguments)
    torch.testing.assert_close(inside.flatten(), u.T @ x.flatten())
    (outside,) = around("lr(1)").unproject([inside], *arguments)
    torch.testing.assert_close(outside, x)


def test_a_second_moment_follows_vectors_that_change_order_and_sign():
    v = torch.arange(1.0, 7.0).reshape(2, 3)
    old = {"left": torch.eye(2), "right": torch.eye(3)}
    new = {"left": torch.tensor([[0.0, -1.0], [1.0, 0.0]]), "right": torch.eye(3)[:, [2, 0, 1]]}
    (moved,) = around("lr(1)").transport([v], "second", [v], [old], [new], [{}])
    torch.testing.assert_close(moved, v[[1, 0]][:, [2, 0, 1]])


def test_a_second_moment_stays_nonnegative_and_keeps_its_sum():
    draw = torch.Generator().manual_seed(0)
    old, new = (
        {
            name: torch.linalg.qr(torch.randn(side, side, generator=draw)).Q
            for name, side in (("left", M), ("right", N))
        }
        for _ in range(2)
    )
    v = torch.zeros(M, N)
    v[0, 0] = 1
    (moved,) = around("lr(1)").transport([v], "second", [v], [old], [new], [{}])
    assert (moved >= 0).all()
    torch.testing.assert_close(moved.sum(), v.sum())


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(5), torch.ones(2, 2, 2), torch.ones(3, 2, dtype=torch.complex64), torch.ones(2, 9)],
    ids=["vector", "three sides", "complex", "long side"],
)
def test_what_is_not_rotated_passes_unchanged(tensor):
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(tensor.clone())]
    lone = torch.nn.Parameter(tensor.clone())
    inside = Optimizer(params, around(["adam()"], max_side=8), "lr(0.1)")
    outside = Optimizer([lone], "adam()", "lr(0.1)")
    for step in range(4):
        for param in (*params, lone):
            param.grad = torch.full_like(param, step + 1)
        inside.step()
        outside.step()
    assert torch.equal(params[1].detach(), lone.detach())
    assert not any(key.startswith("0/left") for key in inside.state[params[1]])


def test_low_precision_is_learnt_in_float32():
    weight = torch.nn.Parameter(torch.ones(M, N, dtype=torch.bfloat16))
    optimizer = Optimizer([weight], around(["adam()"]), "lr(0.1)")
    for _ in range(4):
        weight.grad = gradient(weight.detach().double()).bfloat16()
        optimizer.step()
    assert optimizer.state[weight]["0/left"].dtype == torch.float32
    assert optimizer.state[weight]["0/modules/0/exp_avg"].dtype == torch.bfloat16
    assert weight.isfinite().all()


@pytest.mark.parametrize("wrong", [{"period": 0}, {"beta": 1.0}, {"beta": -0.1}, {"max_side": 0}])
def test_settings_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ArgumentError, match=rf"Kronecker\({name}={value}\)"):
        Kronecker(["adam()"], **wrong)


def test_example():
    done = doctest.testmod(importlib.import_module("projcore_kronecker.kronecker"))
    assert done.attempted
    assert not done.failed
