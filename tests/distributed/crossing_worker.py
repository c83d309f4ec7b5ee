"""One of the processes of test_checkpoints.py: goes on in another kind of model.

Arguments: rank, number of processes, a file to meet at, a file to write to, and a folder that all
processes share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from processes import run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel
from training import by_layers, line, network, recipe, train

from projcore import Optimizer

STEPS = 12
CHAINS: dict[str, Sequence[str]] = {
    "adam": ["clip_norm(1.0)", "adam()", "weight_decay(0.1)", "lr(0.01)"],
    "adafactor": ["adafactor()"],
    "lbfgs": ["lbfgs(history_size=3)", "lr(0.1)"],
    "galore_adamw": [],
    "muon_adamw": [],
}
WAYS: dict[str, Callable[[torch.nn.Module, int], torch.nn.Module]] = {
    "alone": lambda model, size: model,
    "replicated": lambda model, size: DistributedDataParallel(model),
    "sharded": lambda model, size: by_layers(line(size))(model) or model,
}
FORMS: dict[str, dict[str, bool]] = {
    "sharded": {},
    "sharded flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "full flat": {"full_state_dict": True, "flatten_optimizer_state_dict": True},
    "offloaded": {"full_state_dict": True, "cpu_offload": True},
}


def build(name: str, way: str, size: int) -> tuple[torch.nn.Module, Optimizer]:
    """Makes a model, parallel in some way, and its optimizer, by a chain or a recipe."""
    model = WAYS[way](network(), size)
    return model, Optimizer(model, *CHAINS[name]) if CHAINS[name] else recipe(name, model)


def go(
    way: str, model: torch.nn.Module, optimizer: Optimizer, steps: range, rank: int, size: int
) -> list[Tensor]:
    """Trains; a model that is not parallel, on the joint batch."""
    return train(model, optimizer, steps, *((0, 1) if way == "alone" else (rank, size)))


def carry(form: str, before: Any, after: Any, rank: int, folder: Path) -> None:
    """Carries parameters and state from a model and optimizer to others."""
    options = FORMS[form]
    weights, state = get_state_dict(*before, options=StateDictOptions(**options))
    if "full_state_dict" not in options:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
        weights, state = get_state_dict(*after, options=StateDictOptions(**options))
        blank = {"model": weights, "optimizer": state}
        dcp.load(blank, checkpoint_id=folder)
        weights, state = blank["model"], blank["optimizer"]
    elif "cpu_offload" in options:
        assert rank == 0 or not (weights or state)
        options = {**options, "broadcast_from_rank0": True}
    # By `set_state_dict` processes that have nothing do not load a model (torch 2.13).
    set_model_state_dict(after[0], weights, options=StateDictOptions(**options))
    if "flatten_optimizer_state_dict" in options:  # torch 2.13 looks for numbers among names
        options = {"flatten_optimizer_state_dict": True}
    set_optimizer_state_dict(*after, state, options=StateDictOptions(**options))


def cross(name: str, rank: int, size: int, folder: Path) -> dict[str, list[Tensor]]:
    """Trains in one kind of model and goes on in another; returns the parameters at the end."""
    first, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    found = {"expected": go("alone", *build(name, "alone", 1), range(STEPS), 0, 1)}
    for form, (one, other) in itertools.product(FORMS, itertools.permutations(WAYS, 2)):
        if "sharded" in (one, other):
            key = f"{form}, from {one} to {other}"
            before, after = build(name, one, size), build(name, other, size)
            go(one, *before, first, rank, size)
            carry(form, before, after, rank, folder / f"{name} {key}")
            found[key] = go(other, *after, rest, rank, size)
    return found


def everything(rank: int, size: int, folder: str) -> dict[str, object]:
    """Returns the parameters that each chain comes to."""
    return {name: cross(name, rank, size, Path(folder)) for name in CHAINS}


if __name__ == "__main__":
    run(everything)
