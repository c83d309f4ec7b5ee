"""Update functions trace into one graph, with settings and counts as tensors, and equal eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Transform
from projcore.modules import (
    FOAM,
    LAMB,
    LARS,
    MARS,
    RACS,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamMini,
    AdamW,
    Adan,
    AdEMAMix,
    Dion2,
    Hyperball,
    Lion,
    Muon,
    NAdam,
    Orthogonalize,
    RAdam,
    RMSNormalize,
    RMSprop,
    Rprop,
    TrustRatio,
)

pytestmark = pytest.mark.long

SHAPES: list[tuple[int, ...]] = [(5, 3), (4,)]

MODULES: dict[str, Transform] = {
    "adam": Adam(),
    "amsgrad": Adam((0.8, 0.9), 1e-3, amsgrad=True),
    "adamw": AdamW(weight_decay=0.1),
    "rmsprop": RMSprop(alpha=0.9),
    "rmsprop centered momentum": RMSprop(alpha=0.9, eps=1e-3, centered=True, momentum=0.5),
    "adagrad": Adagrad(lr_decay=0.1),
    "lion": Lion(),
    "adam hat": Adam(eps_mode="hat"),
    "nadam": NAdam(),
    "radam": RAdam((0.9, 0.4)),  # never rectified
    "radam rectified": RAdam((0.9, 0.9)),
    "adamax": Adamax(),
    "adadelta": Adadelta(),
    "rprop": Rprop(0.1),
    "adan": Adan(),
    "ademamix": AdEMAMix(warmup=4),
    "mars": MARS(),
    "adafactor": Adafactor(weight_decay=0.1),
    "adafactor eps": Adafactor(None, eps=(1e-3, 1e-3)),
    "adam mini": AdamMini(block="row"),
    "lamb": LAMB(),
    "lars": LARS(),
    "trust ratio": TrustRatio(),
    "foam": FOAM(),
    "racs": RACS(),
    "rms normalize": RMSNormalize(),
    "rms normalize columns": RMSNormalize(0.0, 0, 0.2),
    "muon": Muon(flatten=True, dtype=None, ns_steps=1),  # each step triples rounding errors
    "orthogonalize": Orthogonalize("svd", flatten=True),
    "hyperball": Hyperball(),
    "dion2": Dion2(0.5, method="svd", flatten=True),
}

Memory = dict[str, list[dict[str, Any]]]
Values = dict[str, dict[str, Any]]


def apply_all(tensors: list[Tensor], memory: Memory, settings: Values) -> dict[str, list[Tensor]]:
    params = [tensor + 1 for tensor in tensors]
    return {
        name: list(module.apply(tensors, params, None, None, memory[name], [settings[name]] * 2))
        for name, module in MODULES.items()
    }


def as_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(as_tensors(item) for item in value)
    if value is None or isinstance(value, (str, bool)):
        return value
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def runs(backend: str) -> list[tuple[Any, Any]]:
    """Compiled and eager results and memory of all, after each of the steps."""
    # One graph for all, because each takes seconds to compile.
    compiled: Callable[..., Any] = torch.compile(apply_all, fullgraph=True, backend=backend)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    ours = {
        name: [module.init(tensor, module.defaults) for tensor in zeros]
        for name, module in MODULES.items()
    }
    eager = copy.deepcopy(ours)
    values = {name: dict(module.defaults) for name, module in MODULES.items()}
    numbers = {
        name: {key: as_tensors(value) for key, value in settings.items()}
        for name, settings in values.items()
    }
    random = torch.Generator().manual_seed(0)
    collected = []
    for step in range(8):  # rectification begins at the sixth
        tensors = [torch.randn(shape, generator=random) for shape in SHAPES]
        values["adam"]["betas"] = (0.9 - 0.05 * step, 0.999)
        numbers["adam"]["betas"][0].fill_(0.9 - 0.05 * step)  # a schedule must not recompile
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            result = compiled(tensors, ours, numbers)
        pair = (result, ours), (apply_all(tensors, eager, values), eager)
        collected.append(copy.deepcopy(pair))
    return collected


# torch says this of itself when its compiler is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_compiled_equals_eager(name: str, runs: Any) -> None:
    for (ours, memory), (eager, eager_memory) in runs:
        torch.testing.assert_close(ours[name], eager[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(memory[name], eager_memory[name], rtol=1e-6, atol=1e-6)
