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
        Scope,
        Settings,
        State,
        Transform,
        Write,
        as_module,
        blended,
        common,
        first_nonfinite,
        require,
        scalar,
    )
    from projcore.roles import inspect_model, role_of
    from projcore.rules import Rules, param_groups
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

# Where names are that are not in the kernel's core.
_ELSEWHERE = {
    "Rules": "rules",
    "build": "spec",
    "inspect_model": "roles",
    "param_groups": "rules",
    "role_of": "roles",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: Any
    if name in ("errors", "registry"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        place = _ELSEWHERE.get(name, "core")
        value = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
