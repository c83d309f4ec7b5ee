"""Checks of decay rates."""

from __future__ import annotations

from projcore import Settings, require
from projcore.errors import ArgumentTypeError


def require_betas(owner: object, settings: Settings, count: int = 2) -> None:
    """Raises unless ``betas`` is that many numbers, each at least 0 and less than 1."""
    betas = settings["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != count:
        words, example = {2: ("a pair", (0.9, 0.99)), 3: ("three", (0.98, 0.92, 0.99))}[count]
        raise ArgumentTypeError(
            f"{type(owner).__name__}(betas={betas!r}) was given something else than {words}. betas "
            f"are {count} numbers, at least 0 and less than 1. Pass for example betas={example}."
        )
    for i, beta in enumerate(betas):
        require(owner, f"betas[{i}]", beta, minimum=0, below=1)
