"""Checks of decay rates."""

from __future__ import annotations

from projcore import Settings, require
from projcore.errors import ArgumentTypeError


def require_betas(owner: object, settings: Settings, count: int = 2) -> None:
    """Raises unless ``betas`` has `count` numbers, each at least 0 and less than 1."""
    betas = settings["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != count:
        example = {2: (0.9, 0.99), 3: (0.98, 0.92, 0.99)}[count]
        raise ArgumentTypeError(
            f"{type(owner).__name__}(betas={betas!r}) is not valid. It must be {count} numbers, "
            f"each at least 0 and less than 1. Pass for example betas={example}."
        )
    for i, beta in enumerate(betas):
        require(owner, f"betas[{i}]", beta, minimum=0, below=1)
