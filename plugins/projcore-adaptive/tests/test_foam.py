"""FOAM against its formulas with fold and unfold as matrices, on blocks of all lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import FOAM, LR, Adam, Scale
from projcore.recipes import foam_adamw

BETAS, EPS = (0.8, 0.95), 1e-3


def draw(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unfold(length: int, size: int) -> Tensor:
    """The matrix E: a row for each block, ones at its elements."""
    return torch.stack(
        [
            torch.tensor([float(first <= j < first + size) for j in range(length)]).double()
            for first in range(0, length, size)
        ]
    )


def by_hand(point: Tensor, grads: list[Tensor], size: int, rate: float) -> Tensor:
    repeat = unfold(point.shape[-1], size)  # (blocks, n)
    mean_of = repeat.T / repeat.sum(1)  # (n, blocks)
    m = v = torch.zeros(1, dtype=torch.float64)
    for t, grad in enumerate(grads, start=1):
        low = grad @ mean_of
        m = BETAS[0] * m + (1 - BETAS[0]) * low
        v = BETAS[1] * v + (1 - BETAS[1]) * low**2
        rest = grad - low @ repeat
        factor = (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t)
        point = point - rate * factor * (m @ repeat + rest) / ((v @ repeat + rest**2).sqrt() + EPS)
    return point


@pytest.mark.parametrize("shape", [(3, 16), (3, 10), (5, 3), (2, 3, 9), (4, 1)])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_it_is_the_formula(shape: tuple[int, ...], level: int) -> None:
    weight = Parameter(draw(*shape))
    grads = [draw(*shape, seed=seed) for seed in range(30)]
    expected = by_hand(weight.detach().clone(), grads, 2**level, 0.05)
    optimizer = Optimizer([weight], FOAM(BETAS, EPS, level), LR(0.05))
    for grad in grads:
        weight.grad = grad
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (), (3, 4)])
def test_without_blocks_it_is_adam(shape: tuple[int, ...]) -> None:
    level = 0 if len(shape) == 2 else 2
    weights = [Parameter(draw(*shape)) for _ in range(2)]
    modules = FOAM(BETAS, EPS, level), Adam(BETAS, EPS, eps_mode="hat")
    for weight, module in zip(weights, modules, strict=True):
        optimizer = Optimizer([weight], module, LR(0.05))
        for seed in range(10):
            weight.grad = draw(*shape, seed=seed)
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-12)


def test_memory_is_what_the_formula_says() -> None:
    for shape, level, blocks in (((20, 32), 3, 20 * 4), ((20, 30), 2, 20 * 8), ((9,), 2, 9)):
        weight = Parameter(torch.zeros(shape))
        optimizer = Optimizer([weight], FOAM(level=level), LR(0.1))
        estimated = optimizer.memory().state
        weight.grad = torch.ones(shape)
        optimizer.step()
        assert optimizer.memory().state == estimated == 4 * 2 * blocks + 8


def test_the_recipe_is_foam_and_a_scale_on_matrices_and_adam_on_the_rest() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.Linear(6, 5)).double()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = foam_adamw(model, lr=0.05, betas=BETAS, eps=EPS, project="ndim>=2")
    grads = [[draw(*p.shape, seed=seed) for seed in range(10)] for p in model.parameters()]
    for step in range(10):
        for parameter, own in zip(model.parameters(), grads, strict=True):
            parameter.grad = own[step]
        optimizer.step()
    for parameter, before, own in zip(model.parameters(), start, grads, strict=True):
        size, rate = (4, 0.05 * 0.25) if parameter.ndim > 1 else (1, 0.05)
        expected = by_hand(before, own, size, rate)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="level=-1"):
        FOAM(level=-1)
    with pytest.raises(ArgumentTypeError, match=r"level=1.5.*must be an integer"):
        FOAM(level=1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="FOAM"):
        Optimizer([Parameter(torch.ones(2, 2))], FOAM(eps=-1.0), Scale(0.25), LR(0.1))
    with pytest.raises(ArgumentError, match="complex"):
        Optimizer([Parameter(torch.ones(2, 2) * 1j)], FOAM(), LR(0.1)).memory()
