"""The facts that a module needs, and no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from projcore.core.objective import Objective


def facts(needs: Any, objective: Objective) -> tuple[Any, Any, Tensor | None]:
    """Returns params, grads and loss; None for what is not in `needs`, which is never computed."""
    return (
        objective.params if "params" in needs else None,
        objective.grads if "grads" in needs else None,
        objective.loss if "loss" in needs else None,
    )
