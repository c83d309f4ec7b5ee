"""LDAdam against its formulas with every matrix formed, and what it promises beside the laws."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Chain, Optimizer, Transform
from projcore.errors import ArgumentError, ArgumentTypeError, StepError
from projcore.modules import EMA, LR, Adam, HeavyBall, RMSprop, WeightDecay
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import LowRank
from projcore_lowrank._subspace import orthonormalize
from projcore_lowrank.ldadam import LDAdam, turned

BETAS = (0.908, 0.99)
EPS = 1e-3  # so large that rounding is not blown up where a variance happens to be about zero
SHAPES = [(6, 9), (9, 6), (5, 5), (4,), (3, 2, 2), (7, 1, 8)]


class ByHand:
    """LDAdam on one matrix with the basis on the left: every matrix of the paper is formed."""

    def __init__(self, rank: int, rho: float, betas: tuple[float, float], feedback: bool) -> None:
        self.rank, self.rho, self.betas, self.feedback = rank, rho, betas, feedback
        self.basis: Tensor | None = None
        self.error: Any = 0.0
        self.count = 0

    def direction(self, gradient: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        total = gradient + self.error
        if self.basis is None:
            basis = torch.linalg.svd(total).U[:, : self.rank]
            first = second = torch.zeros(self.rank, total.shape[1], dtype=total.dtype)
            lost: Any = 0.0
        else:
            before = 1 - beta1**self.count, 1 - beta2**self.count
            mean, square = self.first / before[0], self.second / before[1]
            mixed = self.rho * self.basis @ mean + (1 - self.rho) * total
            basis, upper = torch.linalg.qr(mixed @ mixed.T @ self.basis)
            basis = basis @ upper.diagonal().sign().diag()
            change = basis.T @ self.basis
            first = change @ self.first
            carried = change**2 @ (square - mean**2) + (change @ mean) ** 2
            second = before[1] * carried.abs()
            lost = self.basis @ self.first - basis @ first
        low = basis.T @ total
        if self.feedback:
            self.error = total - basis @ low + beta1 / (1 - beta1) * lost
        self.count += 1
        self.basis = basis
        self.first = beta1 * first + (1 - beta1) * low
        self.second = beta2 * second + (1 - beta2) * low**2
        corrected = (self.second / (1 - beta2**self.count)).sqrt() + EPS
        return basis @ (self.first / (1 - beta1**self.count) / corrected)


class ByHandVector:
    """Adam."""

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas, self.count = betas, 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def direction(self, gradient: Tensor) -> Tensor:
        self.count += 1
        beta1, beta2 = self.betas
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        mean = self.first / (1 - beta1**self.count)
        return mean / ((self.second / (1 - beta2**self.count)).sqrt() + EPS)


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor as a matrix whose shorter side is the number of its rows."""
    matrix = tensor.reshape([side for side in tensor.shape if side != 1])
    matrix = matrix.flatten(1)
    return matrix.T if matrix.shape[0] >= matrix.shape[1] else matrix


def as_tensor(matrix: Tensor, like: Tensor) -> Tensor:
    sides = [side for side in like.shape if side != 1]
    turned = sides[0] >= torch.Size(sides[1:]).numel()
    return (matrix.T if turned else matrix).reshape(like.shape)


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradient(i: int, point: Tensor, step: int) -> Tensor:
    """The gradient of a nonlinear function that changes from step to step."""
    flat = point.reshape(-1)
    coupled = torch.sin((i + 1) * flat) + 0.3 * flat.roll(1) * flat.roll(-2).cos()
    return coupled.reshape(point.shape) * (1 + 0.5 * torch.tensor(float(step)).sin())


def train(steps: int, *modules: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    params = parameters(dtype)
    optimizer = Optimizer(params, *modules)
    for step in range(steps):
        take(params, optimizer, step)
    return [param.detach() for param in params]


def take(params: list[Parameter], optimizer: Optimizer, step: int) -> None:
    for i, param in enumerate(params):
        param.grad = gradient(i, param.detach(), step)
    optimizer.step()


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("rho", "betas"), [(0.908, BETAS), (0.3, (0.8, 0.95)), (0.0, (0.0, 0.9))])
def test_it_is_the_published_method(
    rho: float, betas: tuple[float, float], rank: int, feedback: bool
) -> None:
    params = parameters()
    points = [param.detach().clone() for param in params]
    methods: list[Any] = [
        ByHandVector(betas) if point.ndim == 1 else ByHand(rank, rho, betas, feedback)
        for point in points
    ]
    made = LDAdam([Adam(betas=betas, eps=EPS)], rank=rank, rho=rho, error_feedback=feedback)
    optimizer = Optimizer(params, made, WeightDecay(0.1), LR(0.01))
    for step in range(120):
        for i, (point, method) in enumerate(zip(points, methods, strict=True)):
            given = gradient(i, point, step)
            if point.ndim == 1:
                update = method.direction(given)
            else:
                update = as_tensor(method.direction(as_matrix(given)), point)
            points[i] = (1 - 0.01 * 0.1) * point - 0.01 * update
        take(params, optimizer, step)
        for param, point in zip(params, points, strict=True):
            torch.testing.assert_close(param.detach(), point, rtol=1e-9, atol=1e-9)
    if feedback:
        for i, (param, method) in enumerate(zip(params, methods, strict=True)):
            if param.ndim > 1:
                kept = optimizer.state[param]["0/error"]
                torch.testing.assert_close(as_matrix(kept), method.error, rtol=1e-8, atol=1e-8)


if __name__ == "__main__":
    pytest.main([__file__])
