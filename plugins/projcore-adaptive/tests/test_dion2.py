"""Dion2 against its formula; with all rows it is Muon without a mean."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore.modules import LR, Dion2, HeavyBall, Orthogonalize

SHAPES = [(4, 7), (7, 4), (7, 4), (5, 5), (1, 3)]


def draws(steps: int, shapes: list[Any]) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(6)
    return [
        [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
        for _ in range(steps)
    ]


def run(grads: list[list[Tensor]], *modules: Any) -> list[list[Tensor]]:
    """Returns the updates of all steps."""
    weights = [torch.zeros_like(grad).requires_grad_() for grad in grads[0]]
    optimizer = Optimizer(weights, *modules, LR(1.0))
    updates = []
    for step in grads:
        for weight, grad in zip(weights, step, strict=True):
            weight.detach().zero_()
            weight.grad = grad
        optimizer.step()
        updates.append([-weight.detach() for weight in weights])
    return updates


def by_formula(grads: list[Tensor], fraction: float, momentum: float) -> list[Tensor]:
    """Returns the updates of one matrix, row by row; of a tall one, of its transposed."""
    if grads[0].shape[0] > grads[0].shape[1]:
        scale = math.sqrt(grads[0].shape[0] / grads[0].shape[1])
        turned = by_formula([grad.T for grad in grads], fraction, momentum)
        return [scale * update.T for update in turned]
    buffer = torch.zeros_like(grads[0])
    count = math.ceil(fraction * len(buffer))
    updates = []
    for grad in grads:
        buffer = buffer + grad
        sizes = [float(row.abs().sum()) for row in buffer]
        rows = sorted(range(len(buffer)), key=lambda i: -sizes[i])[:count]
        u, _, vh = torch.linalg.svd(buffer[rows], full_matrices=False)
        update = torch.zeros_like(buffer)
        for row, direction in zip(rows, u @ vh, strict=True):
            update[row] = direction
            buffer[row] = momentum * buffer[row]
        updates.append(update)
    return updates


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_30_steps(fraction: float) -> None:
    grads = draws(30, SHAPES)
    ours = run(grads, Dion2(fraction, 0.8, method="svd"))
    for i in range(len(SHAPES)):
        expected = by_formula([step[i] for step in grads], fraction, 0.8)
        for step, update in zip(ours, expected, strict=True):
            torch.testing.assert_close(step[i], update, rtol=1e-9, atol=1e-9)


def test_all_rows_are_momentum_orthogonalized() -> None:
    grads = draws(5, [(4, 7)])
    ours = run(grads, Dion2(1.0, 0.9, method="svd"))
    parts = run(grads, HeavyBall(0.9), Orthogonalize("svd"))
    torch.testing.assert_close(ours, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4), (2, 2, 4, 4)], ids=str)
def test_a_stack_is_as_many_matrices(shape: tuple[int, ...]) -> None:
    grads = draws(4, [shape])
    ours = run(grads, Dion2(0.5, method="svd", folding="last2"))
    single = run([list(step[0].flatten(0, -3)) for step in grads], Dion2(0.5, method="svd"))
    for one, many in zip(ours, single, strict=True):
        torch.testing.assert_close(one[0], torch.stack(many).reshape(shape), rtol=1e-9, atol=1e-9)


def test_few_rows_move_and_bfloat16_is_rough() -> None:
    (update,) = run([[torch.randn(16, 32, generator=torch.Generator().manual_seed(0))]], Dion2())
    rows = update[0].abs().sum(1) > 0
    assert int(rows.sum()) == 4
    values = torch.linalg.svdvals(update[0][rows])
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_bad_arguments() -> None:
    for arguments in ({"fraction": 0.0}, {"fraction": 1.5}, {"momentum": 2.0}, {"method": "qr"}):
        with pytest.raises(ArgumentError, match="Dion2"):
            Dion2(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="Dion2 was given a tensor of shape"):
        Optimizer([torch.zeros(3, requires_grad=True)], Dion2(), LR(0.1))
