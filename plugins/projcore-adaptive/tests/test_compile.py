"""Update functions trace into one graph, with settings and counts as tensors, and equal eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore_adaptive.adagrad import adagrad_update
from projcore_adaptive.adam import adam_update
from projcore_adaptive.lion import lion_update
from projcore_adaptive.rmsprop import rmsprop_update

SHAPES: list[tuple[int, ...]] = [(5, 3), (4,)]


def zeros() -> list[Tensor]:
    return [torch.zeros(shape) for shape in SHAPES]


def counts() -> list[Tensor]:
    return [torch.zeros((), dtype=torch.int64) for _ in SHAPES]


# The function, its memory, and its settings.
CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]], list[float]]] = {
    "adam": (
        adam_update,
        lambda: [zeros(), zeros(), None, counts()],
        [0.9, 0.99, 1e-8],
    ),
    "amsgrad": (
        adam_update,
        lambda: [zeros(), zeros(), zeros(), counts()],
        [0.9, 0.99, 1e-8],
    ),
    "rmsprop": (rmsprop_update, lambda: [zeros(), zeros()], [0.9, 1e-3]),
    "adagrad": (adagrad_update, lambda: [zeros(), counts()], [0.1, 1e-8]),
    "lion": (lion_update, lambda: [zeros()], [0.9, 0.99]),
}


@pytest.fixture(scope="module")
def compiled() -> Callable[..., dict[str, list[Tensor]]]:
    """All functions in one graph, because each graph takes seconds to compile."""

    def run(
        tensors: list[Tensor], memory: dict[str, list[Any]], numbers: dict[str, list[Any]]
    ) -> dict[str, list[Tensor]]:
        return {name: CASES[name][0](tensors, *memory[name], *numbers[name]) for name in CASES}

    return torch.compile(run, fullgraph=True)


@pytest.fixture(scope="module")
def runs(compiled: Any) -> dict[str, list[tuple[Any, Any]]]:
    """For each function, its compiled and eager results and memory after each of three steps."""
    ours = {name: case[1]() for name, case in CASES.items()}
    eager = {name: case[1]() for name, case in CASES.items()}
    numbers = {
        name: [torch.tensor(value, dtype=torch.float64) for value in case[2]]
        for name, case in CASES.items()
    }
    random = torch.Generator().manual_seed(0)
    collected: dict[str, list[tuple[Any, Any]]] = {name: [] for name in CASES}
    for step in range(3):
        tensors = [torch.randn(shape, generator=random) for shape in SHAPES]
        for values, (_, _, settings) in zip(numbers.values(), CASES.values(), strict=True):
            values[0].fill_(settings[0] * (1 - 0.01 * step))  # a schedule must not recompile
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            results = compiled(tensors, ours, numbers)
        for name, (function, _, _) in CASES.items():
            expected = function(tensors, *eager[name], *[x.item() for x in numbers[name]])
            pair = (results[name], ours[name]), (expected, eager[name])
            collected[name].append(copy.deepcopy(pair))
    return collected


# torch says this of itself when its compiler is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_eager(name: str, runs: Any) -> None:
    for ours, eager in runs[name]:
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)
