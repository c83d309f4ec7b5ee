"""The authors' optimizers, behind one interface.

The packages import transformers and bitsandbytes for forms that are not compared; the folder
``stand_ins`` has just enough of both, and is on the path only while the packages are imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import problem

# Before the stand-ins are there: it looks for the real transformers, and does without.
import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

STAND_INS = str(Path(__file__).parent / "stand_ins")
sys.path.insert(0, STAND_INS)
try:
    import apollo_torch
    import fira
    import galore_torch
finally:
    sys.path.remove(STAND_INS)

Kind = Literal["galore", "fira", "apollo", "apollo_mini", "soap"]

# Settings of both sides, in our words.
ADAM: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
PROJECTED: dict[str, Any] = {**ADAM, "rank": 3, "period": problem.PERIOD, "scale": 0.25}
DEFAULTS: dict[Kind, dict[str, Any]] = {
    "galore": PROJECTED,
    "fira": PROJECTED,
    "apollo": {**PROJECTED, "scale": 2.0},
    "apollo_mini": {**PROJECTED, "rank": 1, "scale": 8.0},
    # The sides of 20 are not rotated: in their bases only rounding decides what spans the null
    # space of the first gradient. Rotated gradients have entries that are nothing but rounding,
    # too, which a small eps would blow up to whole steps.
    "soap": {**ADAM, "betas": (0.95, 0.95), "eps": 1e-4, "period": 10, "max_side": 16},
}


def settings_of(kind: Kind, **settings: Any) -> dict[str, Any]:
    """Returns the settings of a kind, some of them changed."""
    return {**DEFAULTS[kind], **settings}


def build(kind: Kind, params: list[Parameter], **settings: Any) -> Optimizer:
    """Builds the authors' optimizer: matrices are projected, all else is not.

    Each parameter is a group of its own, since the order of them all numbers APOLLO's seeds.

    Args:
        kind: Which.
        params: In order.
        settings: In our words, over the defaults; of APOLLO also ``scale_front``, ``limit=False``
            and ``proj``; and ``decay="before"``, which takes the decay away from the package and
            multiplies the parameters before its step.
    """
    settings = settings_of(kind, **settings)
    before = settings.pop("decay", "after") == "before"
    decay = settings["weight_decay"]
    if before:
        settings["weight_decay"] = 0.0
    optimizer = _build(kind, params, settings)
    if before:
        optimizer.register_step_pre_hook(lambda *_: decayed(optimizer, decay))
    return optimizer


@torch.no_grad()
def decayed(optimizer: Optimizer, weight_decay: float) -> None:
    """Multiplies what is about to be stepped by ``1 - lr * weight_decay``."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                param.mul_(1 - group["lr"] * weight_decay)


def _build(kind: Kind, params: list[Parameter], settings: dict[str, Any]) -> Optimizer:
    shared = {name: settings.pop(name) for name in ADAM}
    if kind == "soap":
        own = {
            "precondition_frequency": settings.pop("period"),
            "max_precondition_dim": settings.pop("max_side"),
        }
        return pytorch_optimizer.SOAP(params, **shared, **own, **settings)
    own = {
        "rank": settings.pop("rank"),
        "update_proj_gap": settings.pop("period"),
        "proj_type": settings.pop("side", "std"),
        "alpha" if kind == "fira" else "scale": settings.pop("scale"),
    }
    if kind in ("apollo", "apollo_mini"):
        own |= {
            "proj": settings.pop("proj", "random"),
            "scale_type": "channel" if kind == "apollo" else "tensor",
        }
        shared["scale_front"] = settings.pop("scale_front", False)
        shared["disable_nl"] = not settings.pop("limit", True)
    if settings:
        raise TypeError(f"{kind} has no settings {sorted(settings)}")
    groups = [{"params": [param], **(own if param.ndim == 2 else {})} for param in params]
    make = {
        "galore": galore_torch.GaLoreAdamW,
        "fira": fira.FiraAdamW,
        "apollo": apollo_torch.APOLLOAdamW,
        "apollo_mini": apollo_torch.APOLLOAdamW,
    }[kind]
    return make(groups, no_deprecation_warning=True, **shared)


def trajectory(
    kind: Kind, *, how: dict[str, Any] | None = None, **settings: Any
) -> list[list[Tensor]]:
    """Returns the parameters on the way of the authors' optimizer.

    Args:
        kind: Which.
        how: Arguments of `problem.run`.
        settings: Of the optimizer.
    """
    return problem.run(lambda params: build(kind, params, **settings), **(how or {}))
