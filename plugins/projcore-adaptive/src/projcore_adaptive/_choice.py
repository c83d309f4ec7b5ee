"""Checks of arguments that are one of a few words."""

from __future__ import annotations

from typing import get_args

from projcore.errors import ArgumentError


def require_choice(owner: object, name: str, value: object, choices: object) -> None:
    """Raises unless a value is one of those of a `Literal`."""
    words = get_args(choices)
    if value not in words:
        raise ArgumentError(
            f"{type(owner).__name__}({name}={value!r}) was given something unknown. {name} is one "
            f"of {', '.join(map(repr, words))}. Pass one of these."
        )
