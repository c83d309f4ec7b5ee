"""Recipes on models of which a part is frozen, and trained later."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projcore import Optimizer, recipes

SETTINGS: dict[str, dict[str, Any]] = {
    "alice": {"leading": 0.5},
    "intrinsic_dimension": {"dimension": 20},
    "muon_heads_adamw": {"heads": {"?.weight": 2}},
}
RANKED = {
    *("alice", "apollo", "dct_adamw", "fira", "flora", "galore_adafactor", "galore_adamw"),
    *("golore", "grassjump", "grasswalk", "ldadam", "subtrack", "sumo"),
}


class Net(nn.Module):
    """A model with parameters of each role."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.b(torch.relu(self.a(self.embedding(tokens))))
        return self.head(self.norm(hidden))  # type: ignore[no-any-return]


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        tokens = torch.arange(step, step + 12) % 20
        nn.functional.cross_entropy(model(tokens), (tokens * 7) % 20).backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", ["embedding", "a b", "head", "norm", "a.bias b.bias norm head"])
@pytest.mark.parametrize("name", recipes.__all__)
def test_what_is_frozen_stays_and_is_trained_once_it_is_not(name: str, frozen: str) -> None:
    settings = SETTINGS.get(name, {}) | ({"rank": 4} if name in RANKED else {})
    torch.manual_seed(0)
    model = Net()
    parameters = dict(model.named_parameters())
    for each, parameter in parameters.items():
        parameter.requires_grad_(not each.startswith(tuple(frozen.split())))
    before = copy.deepcopy(parameters)
    optimizer: Optimizer = getattr(recipes, name)(model, **settings)
    assert optimizer.describe()
    assert optimizer.memory().state >= 0
    train(model, optimizer, 2)
    for each, parameter in parameters.items():
        assert torch.equal(parameter, before[each]) is not parameter.requires_grad, each

    model.requires_grad_(True)
    train(model, optimizer, 2)
    assert not any(torch.equal(parameter, before[each]) for each, parameter in parameters.items())

    resumed = copy.deepcopy(model)
    other: Optimizer = getattr(recipes, name)(resumed, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(resumed, other, 2)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
