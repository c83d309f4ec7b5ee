"""Gradients that come and go, parameters frozen and unfrozen, groups added late: as torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, ClipNorm, HeavyBall
from projcore.projections import ScalarProjection, To, VectorProjection

PATTERNS: dict[str, Callable[[int], set[int]]] = {
    "all": lambda step: {0, 1, 2, 3},
    "first never": lambda step: {1, 2, 3},
    "first late": lambda step: {1, 2} | ({0, 3} if step > 3 else set()),
    "in turns": lambda step: {step % 4, (step + 1) % 4},
    "none at times": lambda step: {0, 1, 2, 3} if step % 3 else set(),
    "one at a time": lambda step: {step % 4},
}
WRAPS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "bare": lambda chain: chain,
    "vector": lambda chain: [VectorProjection(chain)],
    "scalar": lambda chain: [ScalarProjection(chain)],
    "nested": lambda chain: [
        VectorProjection([ScalarProjection([To(chain[:1], None)]), *chain[1:]])
    ],
    "half": lambda chain: [ScalarProjection(chain[:1]), *chain[1:]],
}
MODULES: dict[str, tuple[Callable[[], list[Any]], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": (lambda: [Adam(), LR(0.1)], lambda params: torch.optim.Adam(params, lr=0.1)),
    "momentum": (
        lambda: [HeavyBall(0.9), LR(0.1)],
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    ),
    "dampened": (
        lambda: [HeavyBall(0.9, dampening=0.3), LR(0.1)],
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.3),
    ),
}


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("module", MODULES)
def test_gradients_that_come_and_go(
    pattern: str, wrap: str, module: str, make: Any, run: Any
) -> None:
    chain, reference = MODULES[module]
    optimizer, other = Optimizer(make(), *WRAPS[wrap](chain())), reference(make())
    for each in (optimizer, other):
        run(each, range(12), PATTERNS[pattern])
    close(optimizer.param_groups[0]["params"], other.param_groups[0]["params"])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("wrap", ["vector", "scalar"])
@pytest.mark.parametrize("module", ["adam", "momentum"])
def test_a_missing_gradient_counts_as_zero_where_tensors_are_merged(
    pattern: str, wrap: str, module: str, make: Any, feed: Any
) -> None:
    chain, reference = MODULES[module]
    optimizer, other = Optimizer(ours := make(), *WRAPS[wrap](chain())), reference(theirs := make())
    optimizer._use_passes(frozenset())
    for step in range(12):
        chosen = PATTERNS[pattern](step)
        feed(ours, step, chosen)
        optimizer.step()
        if not chosen:  # then a step does nothing at all
            continue
        feed(theirs, step, chosen)
        before = [param.detach().clone() for param in theirs]
        for param in theirs:
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        other.step()
        with torch.no_grad():
            for i, (param, value) in enumerate(zip(theirs, before, strict=True)):
                if i not in chosen:
                    param.copy_(value)
    close(ours, theirs)


@pytest.mark.parametrize("wrap", WRAPS)
def test_without_a_gradient_nothing_of_a_parameter_changes(
    wrap: str, make: Any, run: Any, snapshot: Any, same: Any
) -> None:
    optimizer = Optimizer(make(), *WRAPS[wrap]([Adam(), LR(0.1)]))
    run(optimizer, range(2))
    before = snapshot(optimizer)
    run(optimizer, range(2, 4), lambda step: {0, 3})
    after = snapshot(optimizer)
    for i in (1, 2):
        assert same(before["params"][i], after["params"][i])
        assert same(before["state"][i], after["state"][i])
    for i in (0, 3):
        assert not same(before["params"][i], after["params"][i])
        assert not same(before["state"][i], after["state"][i])


@pytest.mark.parametrize("elide", [True, False])
@pytest.mark.parametrize("wrap", [*WRAPS, "master"])
def test_names_of_memory_do_not_depend_on_which_gradients_came_first(
    wrap: str, elide: bool, make: Any, run: Any
) -> None:
    found = []
    for pattern in PATTERNS.values():
        inner = [Adam(), LR(0.1)]
        chain = [To(inner, "float32", master=True)] if wrap == "master" else WRAPS[wrap](inner)
        optimizer = Optimizer(params := make(), *chain)
        optimizer._use_passes(PASSES if elide else frozenset())
        run(optimizer, range(1, 2), pattern)
        found.append([list(optimizer.state[param]) for param in params])
    assert all(names == found[0] for names in found)


def train(optimizer: torch.optim.Optimizer, model: torch.nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        inputs = torch.randn(5, 3, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        model(inputs).pow(2).mean().backward()
        optimizer.step()


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    ).double()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("module", ["adam", "momentum"])
def test_freezing_and_unfreezing(wrap: str, module: str) -> None:
    chain, reference = MODULES[module]
    results = []
    for ours in (True, False):
        model = network()
        model[0].weight.requires_grad_(False)
        params = model.parameters()
        optimizer = Optimizer(params, *WRAPS[wrap](chain())) if ours else reference(params)
        train(optimizer, model, 3)
        model[0].weight.requires_grad_(True)
        model[2].weight.requires_grad_(False)
        train(optimizer, model, 3)
        model.requires_grad_(True)
        train(optimizer, model, 3)
        results.append(list(model.parameters()))
    close(*results)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("module", ["adam", "momentum"])
def test_groups_added_late(wrap: str, module: str) -> None:
    chain, reference = MODULES[module]
    results = []
    for ours in (True, False):
        model = network()
        params = model[0].parameters()
        optimizer = Optimizer(params, *WRAPS[wrap](chain())) if ours else reference(params)
        train(optimizer, model, 3)
        optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
        assert optimizer.param_groups[0]["lr"] == 0.1
        train(optimizer, model, 4)
        results.append(list(model.parameters()))
    close(*results)


@pytest.mark.parametrize("wrap", ["vector", "scalar"])
@pytest.mark.parametrize("module", ["adam", "momentum"])
def test_memory_of_a_merged_space_outlives_a_late_group(
    wrap: str, module: str, make: Any, run: Any
) -> None:
    """It grows by zeros, or begins anew; either way steps go on, and later ones are resumable."""
    chain, _ = MODULES[module]
    params = make((3,), (2,), (4,))
    optimizer = Optimizer(params[:2], *WRAPS[wrap]([*chain(), ClipNorm(100.0)]))
    optimizer._use_passes(frozenset())
    run(optimizer, range(3))
    optimizer.add_param_group({"params": params[2:]})
    before = [param.detach().clone() for param in params]
    run(optimizer, range(3, 6))
    assert not any(torch.equal(one, other) for one, other in zip(before, params, strict=True))
    twin = Optimizer([{"params": make((3,), (2,))}, {"params": make((4,))}], optimizer.module)
    twin._use_passes(frozenset())
    twin.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        copies = [p for group in twin.param_groups for p in group["params"]]
        for mine, theirs in zip(copies, params, strict=True):
            mine.copy_(theirs)
    for each in (optimizer, twin):
        run(each, range(6, 9))
    assert all(map(torch.equal, copies, params))


class Guess(Module):
    """Descends along the first axis along which the loss falls; needs no gradient."""

    needs = frozenset({"closure", "params"})
    zeroth_order = True

    def step(self, update, objective, state):
        here, _ = objective.evaluate(objective.params, backward=False)
        there, _ = objective.evaluate([p - 0.1 for p in objective.params], backward=False)
        return [torch.full_like(p, 0.1 if there < here else 0.0) for p in objective.params]


def test_what_is_gradient_free_needs_no_backward(make: Any) -> None:
    first, second = make((3,), (2, 2))
    frozen = Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    before = [p.detach().clone() for p in (first, second)]
    optimizer = Optimizer([first, second, frozen], VectorProjection([Guess()]))
    optimizer.step(lambda: first.sum() + second.sum())
    assert first.grad is None
    for param, old in zip((first, second), before, strict=True):
        torch.testing.assert_close(param.detach(), old - 0.1)
    assert frozen.tolist() == [1, 1]
