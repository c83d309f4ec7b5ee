"""Contenders: the compared optimizers, given as specs or names of presets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import projcore
from projcore_lab.peers import call_torch
from projcore_lab.tasks import Task

Factory = Callable[[nn.Module], torch.optim.Optimizer]

TORCH = "torch.optim."
SPACES = {
    "plain": "{inner}(); lr({lr})",
    "vector": "vector([{inner}(), lr({lr})])",
    "float64": "to([{inner}(), lr({lr})], 'float64')",
    "scalar": "scalar([{inner}(), lr({lr})])",
}
PRESETS = (
    {
        "torch-adamw": "torch.optim.AdamW(lr={lr})",
        "torch-adam": "torch.optim.Adam(lr={lr})",
    }
    | {
        f"{space}-{inner}": spec.replace("{inner}", inner)
        for inner in ("adamw", "adam")
        for space, spec in SPACES.items()
    }
    | {
        "vector-lbfgs": "vector([lbfgs(history_size=10), strong_wolfe()])",
        "vector-newton": "vector([newton_cg(max_iterations=10, tolerance=0.01), strong_wolfe()])",
        "vector-descent": "vector([strong_wolfe()])",
        "tiles-muon": (
            "route({{'ndim>=2': block_partition([muon(adjust_lr_fn='match_rms_adamw')], "
            "size=(32, 32)), '*': adam()}}); lr({lr})"
        ),
        "haar-adam": "haar([adam()]); lr({lr})",
        "fourier-lbfgs": (
            "vector([fourier([lbfgs(history_size=10), strong_wolfe()], keep=0.25)])"  # a low pass
        ),
    }
)


def default_names(inner: str) -> list[str]:
    """Returns the default line-up around Adam or AdamW: torch's, ours in each space, and L-BFGS."""
    return [f"torch-{inner}", *(f"{space}-{inner}" for space in SPACES), "vector-lbfgs"]


@dataclass(frozen=True)
class Contender:
    """An optimizer to compare.

    Attributes:
        name: As the user gave it.
        spec: The expression that makes it.
        make: Returns the optimizer, given the model.
        lr: A learning rate to use instead of its own, where it has one.
    """

    name: str
    spec: str
    make: Factory
    lr: float | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Returns a new optimizer of the model's parameters."""
        optimizer = self.make(model)
        if self.lr is not None and learning_rate(optimizer) is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.lr
        return optimizer


def learning_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """Returns the learning rate, or None for an optimizer that has none, or several."""
    factor = isinstance(optimizer, projcore.Optimizer) and optimizer.rate_is_factor
    lr = optimizer.param_groups[0].get("lr")
    return None if lr is None or factor else float(lr)


def lineup(names: Sequence[str], task: Task, lr: float | None = None) -> list[Contender]:
    """Returns the contenders of these names and specs; by default those of the task.

    Args:
        names: Names of presets, or specs such as ``"adam(); lr(0.003)"``; repeated ones count once.
        task: It determines the default line-up, and the learning rate of the presets.
        lr: A learning rate for all that have one.
    """
    chosen = dict.fromkeys(names or [*default_names(task.inner), *task.others])
    return [contender(name, task.lr, lr) for name in chosen]


def contender(name: str, preset_lr: float, lr: float | None = None) -> Contender:
    """Returns the contender of a preset, a spec, a recipe, or an optimizer of torch's.

    An invalid one raises an error when it is built.
    """
    spec = PRESETS[name].format(lr=preset_lr) if name in PRESETS else name

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if spec.startswith(TORCH):
            return call_torch(spec.removeprefix(TORCH), model)
        return projcore.create_optimizer(model, spec)

    return Contender(name, spec, make, lr)
