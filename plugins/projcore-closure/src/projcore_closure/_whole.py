"""The check of integer settings."""

from __future__ import annotations

from projcore import Module, require
from projcore.errors import ArgumentTypeError


def require_whole(owner: Module, name: str, value: object) -> None:
    """Raises an error unless `value` is an integer of at least 1."""
    require(owner, name, value, minimum=1)
    if not isinstance(value, int):
        raise ArgumentTypeError(
            f"{type(owner).__name__}({name}={value!r}) was given a {type(value).__name__}. "
            f"{name} must be an integer."
        )
