"""Compiled, recipes make one graph between refreshes, and make it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projcore import Optimizer
from projcore.modules import LR, Adam, HeavyBall
from projcore.projections import LowRank, RandomSubspace
from projcore.recipes import (
    alice,
    apollo,
    fira,
    galore_adamw,
    grassjump,
    ldadam,
    muon_adamw,
    soap,
    subtrack,
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

STEPS = 500
# LDAdam follows gradients without any direction, as those here are: each step amplifies rounding.
COMPARED = {"ldadam": 30}
RECIPES: dict[str, Callable[..., Optimizer]] = {
    "alice": lambda model: alice(model, rank=4, leading=2, period=20),
    "apollo": lambda model: apollo(model, rank=4, period=20),
    "fira": lambda model: fira(model, rank=4, period=20),
    "galore_adamw": lambda model: galore_adamw(model, rank=4, period=20),
    "grassjump": lambda model: grassjump(model, rank=4, period=20),
    "ldadam": lambda model: ldadam(model, rank=4),
    "muon_adamw": lambda model: muon_adamw(model),
    "soap": lambda model: soap(model, period=10),
    "subtrack": lambda model: subtrack(model, rank=4, period=20),
}


class Counting:
    """A backend of `torch.compile` that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    @property
    def options(self) -> dict[str, Any]:
        """Of an optimizer; a break of the graph is an error."""
        return {"backend": self, "fullgraph": True}


@pytest.fixture
def backend() -> Iterator[Counting]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield Counting()
    torch._dynamo.reset()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 20), nn.Linear(20, 6))


def compiled(optimizer: Optimizer, backend: Counting) -> Optimizer:
    """Returns a recipe's optimizer, compiled."""
    optimizer.compile = backend.options
    return optimizer


def feed(params: list[Tensor], step: int) -> None:
    for i, param in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        param.grad = torch.randn(param.shape, generator=generator)


def train(optimizer: Optimizer, steps: int) -> Iterator[list[Tensor]]:
    """Steps with a scheduler; yields the parameters after each step."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        feed(params, step)
        optimizer.step()
        schedule.step()
        yield [param.detach() for param in params]


def assert_same(one: Optimizer, other: Optimizer) -> None:
    pairs = zip(one.state.values(), other.state.values(), strict=True)
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert type(value) is type(theirs[key])
            torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_one_graph_compiled_once(name: str, backend: Counting) -> None:
    """Whatever the learning rate is, and however often bases are refreshed."""
    mine = compiled(RECIPES[name](model()), backend)
    theirs = RECIPES[name](model())
    points = zip(train(mine, STEPS), train(theirs, STEPS), strict=True)
    for step, (one, other) in enumerate(points, 1):
        if step in (1, 2, COMPARED.get(name, STEPS)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-5)
            assert_same(mine, theirs)
    assert len(backend.graphs) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


CHAINS: dict[str, Callable[[], Any]] = {
    "error feedback": lambda: LowRank([Adam()], rank=3, period=5, error_feedback=True),
    "frugal": lambda: LowRank([Adam()], rank=3, period=5, combine="sign", residual_scale=0.5),
    "residual": lambda: LowRank([Adam()], rank=3, period=5, combine="residual", scale=0.5),
    "apollo mini": lambda: LowRank([Adam()], rank=1, period=5, combine="apollo_mini"),
    "full": lambda: LowRank([Adam()], rank=3, period=5, side="full", policy="transport"),
    "reset": lambda: LowRank([Adam()], rank=3, period=5, policy="reset"),
    "stored": lambda: RandomSubspace([HeavyBall(0.9)], rank=3, period=5, store=True),
    "drawn": lambda: RandomSubspace([HeavyBall(0.9)], rank=3, period=5, policy="transport"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_comes_out(name: str, backend: Counting) -> None:
    results = []
    for options in (backend.options, False):
        optimizer = Optimizer(model().parameters(), CHAINS[name](), LR(0.01), compile=options)
        *_, point = train(optimizer, 20)
        results.append((point, optimizer))
    (one, mine), (other, theirs) = results
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert_same(mine, theirs)
    assert len(backend.graphs) == 1


def test_a_new_rank_is_compiled_once(backend: Counting) -> None:
    results = []
    for options in (backend.options, False):
        chain = [LowRank([Adam()], rank=3, period=4), LR(0.01)]
        optimizer = Optimizer(model().parameters(), chain, compile=options)
        *_, _ = train(optimizer, 6)
        optimizer.param_groups[0]["rank"] = 5
        *_, point = train(optimizer, 6)
        results.append((point, optimizer))
    (one, mine), (other, theirs) = results
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert_same(mine, theirs)
    assert len(backend.graphs) == 2


def test_with_inductor() -> None:
    """With torch's own compiler."""
    torch._dynamo.reset()
    results = []
    for options in ({"fullgraph": True}, False):
        optimizer = galore_adamw(model(), rank=4, period=4)
        optimizer.compile = options
        *_, point = train(optimizer, 10)
        results.append(point)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
