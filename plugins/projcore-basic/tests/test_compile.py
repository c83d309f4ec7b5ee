"""Update functions trace into one graph, with settings and counts as tensors, and equal eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Observer, Optimizer, Transform
from projcore.modules import (
    EMA,
    LR,
    Cautious,
    Centralize,
    ClipNorm,
    ClipValue,
    EMANesterov,
    HeavyBall,
    Lookahead,
    Normalize,
    NormGrowthLimiter,
    PolyakAveraging,
    Scale,
    ScheduleFree,
    Sign,
    WeightDecay,
)

SHAPES: list[tuple[int, ...]] = [(5, 3), (4,)]

MODULES: dict[str, Transform | Observer] = {
    "lr": LR(0.1),
    "scale": Scale(-0.5),
    "ema": EMA(0.9),
    "ema from zero": EMA(0.9, debias=False),
    "heavy ball": HeavyBall(0.9),
    "dampening": HeavyBall(0.9, 0.3),
    "nesterov": HeavyBall(0.9, nesterov=True),
    "weight decay": WeightDecay(0.1),
    "weight decay 1": WeightDecay(0.1, norm=1),
    "weight decay cautious": WeightDecay(0.1, cautious=True),
    "clip norm": ClipNorm(0.5),
    "clip norm per tensor": ClipNorm(0.5, 3, per_tensor=True),
    "clip value": ClipValue(0.3),
    "normalize": Normalize(),
    "normalize all": Normalize(1, per_tensor=False),
    "normalize rows": Normalize(dim=1),
    "sign": Sign(),
    "centralize": Centralize(),
    "cautious": Cautious(),
    "norm growth limiter": NormGrowthLimiter(1.01),
    "lookahead": Lookahead(0.5, 2),
    "ema nesterov": EMANesterov(),
    "schedule free": ScheduleFree(0.1),
    "polyak averaging": PolyakAveraging(),
    "polyak averaging, ema": PolyakAveraging(0.9),
}

Memory = dict[str, list[dict[str, Any]]]
Values = dict[str, dict[str, Any]]


def apply_all(tensors: list[Tensor], memory: Memory, settings: Values) -> dict[str, list[Tensor]]:
    params = [tensor + 1 for tensor in tensors]
    grads = [tensor.roll(1, 0) for tensor in tensors]
    results = {}
    for name, module in MODULES.items():
        values = [settings[name]] * 2
        if isinstance(module, Transform):
            result = list(module.apply(tensors, params, grads, None, memory[name], values))
        else:  # it leaves the update as it is
            module.observe(params, memory[name], values)
            result = tensors
        results[name] = result
    return results


@pytest.fixture(scope="module")
def runs(backend: str) -> list[tuple[Any, Any]]:
    """Compiled and eager results and memory of all, after each of three steps."""
    # One graph for all, because each takes seconds to compile.
    compiled: Callable[..., Any] = torch.compile(apply_all, fullgraph=True, backend=backend)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    ours = {
        name: [module.init(tensor, module.defaults) for tensor in zeros]
        for name, module in MODULES.items()
    }
    ours["norm growth limiter"] = [{"norm": torch.zeros(1)} for _ in zeros]
    eager = copy.deepcopy(ours)
    values = {name: dict(module.defaults) for name, module in MODULES.items()}
    numbers = {
        name: {
            key: None if value is None else torch.tensor(value, dtype=torch.float64)
            for key, value in settings.items()
        }
        for name, settings in values.items()
    }
    random = torch.Generator().manual_seed(0)
    collected = []
    for step in range(3):
        tensors = [torch.randn(shape, generator=random) for shape in SHAPES]
        values["lr"]["lr"] = 0.1 / (1 + step)
        numbers["lr"]["lr"].fill_(0.1 / (1 + step))  # a schedule must not recompile
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


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_learning_rate_as_a_tensor_that_a_scheduler_fills() -> None:
    def end(rate: Any, compile: bool) -> Tensor:
        weight = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
        optimizer = Optimizer([weight], HeavyBall(0.9), LR(rate), compile=compile)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(5):
            weight.grad = weight.detach().cos()
            with torch._dynamo.config.patch(error_on_recompile=step > 1):
                optimizer.step()
            scheduler.step()
        return weight.detach()

    torch.compiler.reset()
    rate = torch.tensor(0.25, dtype=torch.float64)
    torch.testing.assert_close(end(rate, True), end(0.25, False), rtol=1e-14, atol=1e-14)
    assert float(rate) == 0.25 / 2**5  # filled in place
