"""Optimizers whose saved states are kept as files, to see that later versions still load them.

`python tests/checkpoints/configurations.py FILE` writes such a file with the version installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SPECS: dict[str, list[str]] = {
    "adam": ["adam()", "lr(0.01)"],
    "clip, adamw": ["clip_norm(1.0)", "adamw(weight_decay=0.1)", "lr(0.01)"],
    "vector": ["vector([clip_norm(1.0), adam(), lr(0.01)])"],
    "merged memory": ["vector([normalize(), heavy_ball()])", "lr(0.01)"],
    "scalars": ["scalar([normalize(), adam()])", "lr(0.01)"],
    "to": ["to([adam(), lr(0.01)], 'float64', master=True)"],
    "low_rank": ["low_rank([adam()], rank=2, period=3)", "lr(0.01)"],
    "fira": ["low_rank([adam()], rank=2, period=2, combine='fira')", "lr(0.01)"],
    "apollo": ["random_subspace([adam()], rank=2, combine='apollo')", "lr(0.01)"],
    "soap": ["soap_rotation([adam()], period=2)", "lr(0.01)"],
    "route": ["route({'ndim==2': ['muon()', 'lr(0.01)'], '*': ['adam()', 'lr(0.01)']})"],
    "nested": ["vector([dct([adam()]), ema(0.9)])", "lr(0.01)"],
    "lbfgs": ["vector([lbfgs(), strong_wolfe()])"],
    "averaged": ["adam()", "lr(0.01)", "polyak_averaging()"],
}
STEPS = 3


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))

        def closure(inputs: Tensor = inputs) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(inputs) - inputs[:, :3]).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def build(name: str) -> tuple[torch.nn.Module, Any]:
    from projcore import Optimizer

    model = network()
    weights = [{"params": [p for p in model.parameters() if p.ndim == 2]}]
    others = [{"params": [p for p in model.parameters() if p.ndim < 2]}]
    return model, Optimizer(weights + others, *SPECS[name])


def save(name: str) -> dict[str, Any]:
    """A run: the state half-way, and where it ends."""
    model, optimizer = build(name)
    train(model, optimizer, range(STEPS))
    middle = {key: value.clone() for key, value in model.state_dict().items()}
    state = _copied(optimizer.state_dict())
    train(model, optimizer, range(STEPS, 2 * STEPS))
    return {"model": middle, "optimizer": state, "end": model.state_dict()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    runs: dict[str, Callable[..., Any] | Any] = {name: save(name) for name in SPECS}
    torch.save(runs, sys.argv[1])
