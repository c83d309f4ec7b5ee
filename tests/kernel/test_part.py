"""`Optimizer.part`: an optimizer of some of the parameters does what that of all does to them."""

from __future__ import annotations

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError

MODULES = 'route({"*.weight": [low_rank([adam()], rank=2, period=2)], "*": [adam()]})', "lr(0.1)"


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    return model


def step(model: torch.nn.Module, optimizers: list[Optimizer], steps: int = 3) -> None:
    for seed in range(steps):
        torch.manual_seed(seed)
        for param in model.parameters():
            if param.requires_grad:
                param.grad = torch.randn_like(param)
        for optimizer in optimizers:
            optimizer.step()


def test_parts_step_as_the_whole() -> None:
    """Of the rules of a part, some hold for none of its parameters."""
    expected, model = network(), network()
    step(expected, [Optimizer(expected.named_parameters(), *MODULES)])
    whole = Optimizer(model.named_parameters(), *MODULES)
    (group,) = whole.param_groups
    cuts = [{**group, "params": group["params"][i::2]} for i in range(2)]
    parts = [whole.part([cut]) for cut in cuts]
    for part in parts:
        part.param_groups[0]["param_names"] = ["of", "another", "process"]
    step(model, parts)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [part.param_groups[0]["param_names"] for part in parts] == [
        ["0.weight", "1.weight"],
        ["0.bias", "1.bias"],
    ]
    assert not whole.state


def test_a_part_needs_no_parameters() -> None:
    whole = Optimizer(network().parameters(), "adam()", "lr(0.1)")
    whole.part([{**whole.param_groups[0], "params": []}]).step()


def test_modules_that_need_all_are_refused() -> None:
    whole = Optimizer(network().parameters(), "clip_norm(1.0)", "lr(0.1)")
    with pytest.raises(ArgumentError, match=r"some parameters, but clip_norm\(1.0\) needs"):
        whole.part(whole.param_groups)
