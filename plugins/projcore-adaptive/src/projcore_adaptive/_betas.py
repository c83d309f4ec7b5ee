"""Checks of decay rates."""

from __future__ import annotations

from projcore import Settings, require
from projcore.errors import ArgumentTypeError


def require_betas(owner: object, settings: Settings) -> None:
    """Raises unless ``betas`` is a pair of numbers, at least 0 and less than 1."""
    betas = settings["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ArgumentTypeError(
            f"{type(owner).__name__}(betas={betas!r}) was given something else than a pair. betas "
            "are two numbers, at least 0 and less than 1. Pass for example betas=(0.9, 0.99)."
        )
    for i, beta in enumerate(betas):
        require(owner, f"betas[{i}]", beta, minimum=0, below=1)
