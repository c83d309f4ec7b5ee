"""One of the processes of test_checkpoints.py: trains, saves, and goes on in others.

Arguments: rank, number of processes, a file to meet at, a file to write to, a folder with
checkpoints, and what to do: ``save`` or ``load``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from processes import run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from projcore import Optimizer

STEPS, SAMPLES = 6, 12
CHAINS: dict[str, Sequence[str]] = {
    "adam": ["adam()", "weight_decay(0.1)", "lr(0.01)"],
    "momentum": ["clip_norm(1.0)", "norm_growth_limiter()", "heavy_ball(0.9)", "lr(0.01)"],
    "adafactor": ["adafactor()"],
    "adam mini": ['adam_mini(block="row")', "lr(0.01)"],
    "lbfgs": ["lbfgs(history_size=3)", "lr(0.1)"],
}
WHOLE = StateDictOptions(full_state_dict=True)


def build(name: str, size: int) -> tuple[torch.nn.Module, Optimizer]:
    """Makes a model, sharded if there are several processes, and its optimizer."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)
    model = torch.nn.Sequential(*layers).double()
    if size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model, Optimizer(model.parameters(), *CHAINS[name])


def train(
    model: torch.nn.Module, optimizer: Optimizer, steps: range, rank: int, size: int
) -> list[Tensor]:
    """Trains on this process's share of each batch; returns the parameters."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 5, dtype=torch.float64, generator=generator)
        share = inputs[rank * SAMPLES // size : (rank + 1) * SAMPLES // size]
        optimizer.zero_grad()
        (model(share) - share[:, :1].sin()).square().mean().backward()
        optimizer.step()
    params = [param.detach() for param in model.parameters()]
    return [param.full_tensor() if isinstance(param, DTensor) else param for param in params]


def save(name: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Saves what is sharded, and what one process has, in the middle of a run."""
    first, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    model, optimizer = build(name, 1)
    train(model, optimizer, first, 0, 1)
    if rank == 0:
        torch.save(get_state_dict(model, optimizer, options=WHOLE), folder / f"{name}.pt")
    found = {"alone": train(model, optimizer, rest, 0, 1)}
    model, optimizer = build(name, size)
    train(model, optimizer, first, rank, size)
    parts = get_state_dict(model, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), parts, strict=True)), checkpoint_id=folder / name)
    return found | {"sharded": train(model, optimizer, rest, rank, size)}


def load(name: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Goes on in optimizers that have not stepped."""
    rest = range(STEPS // 2, STEPS)
    model, optimizer = build(name, size)
    blank = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(blank, checkpoint_id=folder / name)
    set_state_dict(
        model, optimizer, model_state_dict=blank["model"], optim_state_dict=blank["optimizer"]
    )
    found = {"sharded": train(model, optimizer, rest, rank, size)}
    model, optimizer = build(name, size)
    weights, state = torch.load(folder / f"{name}.pt")
    set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=state, options=WHOLE
    )
    return found | {"alone": train(model, optimizer, rest, rank, size)}


def everything(rank: int, size: int, folder: str, do: str) -> dict[str, Any]:
    """Saves, or goes on from what was saved, with each chain."""
    task = {"save": save, "load": load}[do]
    return {name: task(name, rank, size, Path(folder)) for name in CHAINS}


if __name__ == "__main__":
    run(everything)
