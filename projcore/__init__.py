"""Optimizers in projected spaces for PyTorch.

Importing this package does not import torch; the first use of a name that needs it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projcore import errors, registry
    from projcore.core import (
        Blend,
        Chain,
        Current,
        Kind,
        Memory,
        Module,
        Need,
        Node,
        Objective,
        Optimizer,
        Policy,
        ProjectionBase,
        Row,
        Rules,
        Scope,
        Settings,
        State,
        Transform,
        Write,
        as_module,
        blended,
        common,
        first_nonfinite,
        inspect_model,
        param_groups,
        require,
        role_of,
        scalar,
    )
    from projcore.spec import build

__version__ = "0.1.0"

__all__ = [
    "Blend",
    "Chain",
    "Current",
    "Kind",
    "Memory",
    "Module",
    "Need",
    "Node",
    "Objective",
    "Optimizer",
    "Policy",
    "ProjectionBase",
    "Row",
    "Rules",
    "Scope",
    "Settings",
    "State",
    "Transform",
    "Write",
    "__version__",
    "as_module",
    "blended",
    "build",
    "common",
    "errors",
    "first_nonfinite",
    "inspect_model",
    "param_groups",
    "registry",
    "require",
    "role_of",
    "scalar",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: Any
    if name in ("errors", "registry"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        place = "spec" if name == "build" else "core"
        value = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
