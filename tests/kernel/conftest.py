"""What these tests share: parameters, gradients, and snapshots of all that a step may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

SHAPES = ((3, 2), (4,), (), (2, 1, 3))


def make(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Parameter]:
    """Parameters of these shapes, always with the same values."""
    generator = torch.Generator().manual_seed(0)
    return [
        Parameter(torch.randn(shape, dtype=dtype, generator=generator))
        for shape in shapes or SHAPES
    ]


def feed(params: Sequence[Tensor], step: int, which: Iterable[int] | None = None) -> None:
    """Gives the chosen parameters the gradients of that step, and the others none."""
    chosen = range(len(params)) if which is None else set(which)
    for i, param in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i + 1)
        grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)
        param.grad = grad if i in chosen else None


def run(optimizer: torch.optim.Optimizer, steps: range, which: Any = None) -> None:
    """Steps with the gradients of those steps; `which` tells the parameters that have one."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        feed(params, step, None if which is None else which(step))
        optimizer.step()


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of all that must stay when something is refused."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "params": [p.detach().clone() for p in params],
        "grads": [None if p.grad is None else p.grad.clone() for p in params],
        "places": [p.data_ptr() for p in params],
        "groups": [
            {key: _copy(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
        "state": [
            {key: _copy(value) for key, value in optimizer.state.get(p, {}).items()} for p in params
        ],
    }


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bitwise and in dtype."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        return torch.equal(*flat)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(name="make")
def _make() -> Callable[..., list[Parameter]]:
    return make


@pytest.fixture(name="feed")
def _feed() -> Callable[..., None]:
    return feed


@pytest.fixture(name="run")
def _run() -> Callable[..., None]:
    return run


@pytest.fixture(name="snapshot")
def _snapshot() -> Callable[..., dict[str, Any]]:
    return snapshot


@pytest.fixture(name="same")
def _same() -> Callable[..., bool]:
    return same
