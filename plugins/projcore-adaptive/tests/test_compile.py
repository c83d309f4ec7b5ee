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

# torch says this of itself when its compiler is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")

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


@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_eager(name: str) -> None:
    function, memory, settings = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    numbers = [torch.tensor(value, dtype=torch.float64) for value in settings]
    ours, eager = memory(), memory()
    random = torch.Generator().manual_seed(0)
    for step in range(3):
        tensors = [torch.randn(shape, generator=random) for shape in SHAPES]
        numbers[0].fill_(settings[0] - 0.01 * step)  # a schedule must not recompile
        expected = function(tensors, *eager, numbers[0].item(), *settings[1:])
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            result = compiled(copy.deepcopy(tensors), *ours, *numbers)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)
