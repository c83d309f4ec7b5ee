"""Steps in which other parameters have a gradient each time, as the experts of a mixture do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer, recipes
from projcore.engine.making import KEPT

Make = Callable[[list[tuple[str, Parameter]]], Optimizer]
COUNT = 12

CHAINS: dict[str, Make] = {
    **{
        text: lambda named, text=text: Optimizer(named, text)
        for text in (
            "adam(); lr(0.1)",
            "adamw(); lr(0.1)",
            "to([adamw(), lr(0.1)], 'float64', master=True)",
            "to([adam(), lr(0.1)], 'float64')",
            "adam(); lr(0.1); polyak_averaging(0.9)",
            "route({'*[02468]': [muon()], '*': [adam()]}); lr(0.1)",
            "heavy_ball(); lr(0.1)",
            "clip_norm(0.1); adam(); lr(0.1)",
            "gradient_accumulation([adam()], 2); lr(0.1)",
        )
    },
    "galore_adamw": lambda named: recipes.galore_adamw(named, rank=2, period=2),
    "ldadam": lambda named: recipes.ldadam(named, rank=2),
    "soap": lambda named: recipes.soap(named),
}
TOGETHER: dict[str, Make] = {
    text: lambda named, text=text: Optimizer(named, text)
    for text in ("vector([heavy_ball()]); lr(0.1)", "low_rank([clip_norm(0.1)], rank=2); lr(0.1)")
}


def train(make: Make, steps: int = 14, **settings: Any) -> tuple[Optimizer, list[Parameter]]:
    """Trains with other gradients in each step; in every fifth, all are there."""
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(4, 6, generator=generator)) for _ in range(COUNT)]
    optimizer = make([(f"w{i}", parameter) for i, parameter in enumerate(parameters)])
    for name, value in settings.items():
        setattr(optimizer, name, value)
    draw = random.Random(0)
    for step in range(steps):
        chosen = range(COUNT) if step % 5 == 4 else draw.sample(range(COUNT), 1 + step % 4)
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(4, 6, generator=generator) if i in chosen else None
        optimizer.step()
    return optimizer, parameters


@pytest.mark.parametrize("bucket_bytes", [None, 200])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_part_of_the_plan_is_as_a_plan_of_its_own(
    chain: str, bucket_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bucket_bytes and "clip_norm" in chain:
        pytest.skip("its norm is of all")
    parts, found = train(CHAINS[chain], bucket_bytes=bucket_bytes)
    assert len(parts._plans) <= 2  # the first step's, and one for all
    monkeypatch.setattr(Optimizer, "_runs_in_parts", lambda self: False)
    plans, expected = train(CHAINS[chain])
    assert len(plans._plans) > 2
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
        state, other = parts.state[one], plans.state[two]
        assert state.keys() == other.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chain", TOGETHER)
def test_parameters_that_cannot_be_separated_have_plans_of_their_own(chain: str) -> None:
    optimizer, _ = train(TOGETHER[chain])
    assert len(optimizer._plans) > 2


def test_step_counts_are_those_of_each_parameter() -> None:
    """The fused kernel has the counts of a part in one tensor, which other parts share."""
    seen = [0] * COUNT
    draw = random.Random(0)
    for step in range(14):
        chosen = range(COUNT) if step % 5 == 4 else draw.sample(range(COUNT), 1 + step % 4)
        for i in chosen:
            seen[i] += 1
    optimizer, parameters = train(CHAINS["adam(); lr(0.1)"])
    counts = [int(optimizer.state_dict()["state"][i]["0/step"]) for i in range(COUNT)]
    assert counts == seen
    assert len(parameters) == COUNT


def test_few_parts_are_kept() -> None:
    optimizer, _ = train(CHAINS["adam(); lr(0.1)"], steps=200)
    blocks = optimizer._plans[None]._blocks
    assert len(blocks) > 1
    assert sum(map(len, blocks)) <= KEPT * COUNT
