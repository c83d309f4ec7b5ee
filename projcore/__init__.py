"""Optimizers in projected spaces for PyTorch.

Importing this package does not import torch; the first use of a name that needs it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projcore import errors, registry
    from projcore.choice import Choice, as_choice
    from projcore.core.chain import Chain, as_module
    from projcore.core.module import Kind, Module, Need, Observer, Planner, Scope, Transform
    from projcore.core.objective import Objective
    from projcore.core.projection import Current, OnRefresh, ProjectionBase
    from projcore.core.settings import Settings
    from projcore.core.space import Space
    from projcore.core.state import Entries, State
    from projcore.core.writer import Blend, Write, Writer
    from projcore.create import create_optimizer
    from projcore.engine.adopt import adopt_state
    from projcore.engine.blended import blended
    from projcore.engine.finite import first_nonfinite
    from projcore.optimizer import Optimizer
    from projcore.report.memory import Memory
    from projcore.roles import inspect_model, role_of
    from projcore.rules import Rules, param_groups
    from projcore.spec import build
    from projcore.values import common, require, scalar

__version__ = "0.1.0"

__all__ = [
    "Blend",
    "Chain",
    "Choice",
    "Current",
    "Entries",
    "Kind",
    "Memory",
    "Module",
    "Need",
    "Objective",
    "Observer",
    "OnRefresh",
    "Optimizer",
    "Planner",
    "ProjectionBase",
    "Rules",
    "Scope",
    "Settings",
    "Space",
    "State",
    "Transform",
    "Write",
    "Writer",
    "__version__",
    "adopt_state",
    "as_choice",
    "as_module",
    "blended",
    "build",
    "common",
    "create_optimizer",
    "errors",
    "first_nonfinite",
    "inspect_model",
    "param_groups",
    "registry",
    "require",
    "role_of",
    "scalar",
]

# The files that the names are in; a module is its own.
_HOMES = {
    "Blend": "core.writer",
    "Chain": "core.chain",
    "Choice": "choice",
    "Current": "core.projection",
    "Kind": "core.module",
    "Memory": "report.memory",
    "Module": "core.module",
    "Need": "core.module",
    "Entries": "core.state",
    "Objective": "core.objective",
    "Observer": "core.module",
    "OnRefresh": "core.projection",
    "Optimizer": "optimizer",
    "Planner": "core.module",
    "ProjectionBase": "core.projection",
    "Rules": "rules",
    "Scope": "core.module",
    "Settings": "core.settings",
    "Space": "core.space",
    "State": "core.state",
    "Transform": "core.module",
    "Write": "core.writer",
    "Writer": "core.writer",
    "adopt_state": "engine.adopt",
    "as_choice": "choice",
    "as_module": "core.chain",
    "blended": "engine.blended",
    "build": "spec",
    "common": "values",
    "create_optimizer": "create",
    "first_nonfinite": "engine.finite",
    "inspect_model": "roles",
    "param_groups": "rules",
    "require": "values",
    "role_of": "roles",
    "scalar": "values",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: Any
    if name in ("errors", "registry"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
