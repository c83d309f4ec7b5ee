"""The library's errors: all share one base, and each is also the built-in that fits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "ContractError",
    "NeedsError",
    "NonFiniteError",
    "PluginError",
    "PluginWarning",
    "ProjcoreError",
    "SpecError",
    "StepError",
    "UnknownNameError",
    "suggest",
]


class ProjcoreError(Exception):
    """Base of every error that this library raises on purpose."""


class ArgumentError(ProjcoreError, ValueError):
    """A constructor, a setting or a call was given a bad value."""


class ArgumentTypeError(ProjcoreError, TypeError):
    """A constructor, a setting or a call was given a value of the wrong type."""


class NeedsError(ArgumentError):
    """A module needs a fact that the place where it was put does not deliver."""


class ContractError(ProjcoreError, RuntimeError):
    """A plugin broke its contract, for example by returning tensors of other shapes."""


class StepError(ProjcoreError, RuntimeError):
    """A step cannot be taken: no closure, or a gradient that cannot be used."""


class NonFiniteError(StepError):
    """A step would compute with Inf or NaN where that does harm which does not show.

    Attributes:
        skip: Whether the step is to be left out and no error raised: then `Optimizer.step` changes
            nothing, and returns as if there had been no gradient.
    """

    def __init__(self, message: str, skip: bool = False) -> None:
        super().__init__(message)
        self.skip = skip


class CheckpointError(ProjcoreError, ValueError):
    """A saved state does not fit the optimizer it is loaded into."""


class SpecError(ProjcoreError, ValueError):
    """A spec cannot be read, or a module cannot be written as one."""


class UnknownNameError(ProjcoreError, LookupError):
    """No component has that name, or several have."""


class PluginError(ProjcoreError, ImportError):
    """A plugin, or one of its components, cannot be loaded."""


class PluginWarning(UserWarning):
    """A plugin, or a switch for plugins, is out of order; everything else works."""


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the choice that `name` most likely means, or None; case, ``-`` and ``_`` are equal.

    Example:
        >>> closest("Clip-Norm", ["clip_norm", "lr"])
        'clip_norm'
    """
    plain = {_plain(choice): choice for choice in reversed(list(choices))}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.7)
    return plain[near[0]] if near else None


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` with the choice that is closest to `name`, or an empty text.

    Example:
        >>> suggest("adm", ["adam", "lr"])
        " Did you mean 'adam'?"
    """
    near = closest(name, choices)
    return f" Did you mean {near!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
