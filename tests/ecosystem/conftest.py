"""A small model in float64, the data it trains on, and both in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return model.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 3, dtype=dtype, generator=generator)
    return inputs, inputs[:, :2].sin()


def closure_of(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> Callable[..., Tensor]:
    inputs, targets = batch(step, next(model.parameters()).dtype)

    def closure(backward: bool = True) -> Tensor:
        loss = (model(inputs) - targets).square().mean()
        if backward:
            optimizer.zero_grad()
            loss.backward()
        return loss

    return closure


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[int],
    schedule: Any = None,
) -> None:
    for step in steps:
        optimizer.step(closure_of(model, optimizer, step))
        if schedule is not None:
            schedule.step()


@pytest.fixture(name="network")
def _network() -> Any:
    return network


@pytest.fixture(name="closure_of")
def _closure_of() -> Any:
    return closure_of


@pytest.fixture(name="train")
def _train() -> Any:
    return train


@pytest.fixture
def equal() -> Callable[[torch.nn.Module, torch.nn.Module], bool]:
    """Whether two models are bitwise the same."""

    def compare(one: torch.nn.Module, other: torch.nn.Module) -> bool:
        return all(
            torch.equal(mine, theirs) and mine.dtype == theirs.dtype
            for mine, theirs in zip(one.parameters(), other.parameters(), strict=True)
        )

    return compare


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two nested values are equal, tensors exactly and in dtype."""

    def compare(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(compare(one[k], other[k]) for k in one)
        if isinstance(one, (list, tuple)) and type(one) is type(other):
            return len(one) == len(other) and all(map(compare, one, other))
        return type(one) is type(other) and bool(one == other)

    return compare


@pytest.fixture
def close() -> Callable[[torch.nn.Module, torch.nn.Module], None]:
    """Asserts that two models in float64 are the same but for rounding."""

    def compare(one: torch.nn.Module, other: torch.nn.Module) -> None:
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)

    return compare
