"""The library's errors: all share one base, and each also derives from a built-in error."""

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
    "ProjcoreWarning",
    "SpecError",
    "StepError",
    "StepSizeWarning",
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
    """A module needs a fact that the projection around it does not provide."""


class ContractError(ProjcoreError, RuntimeError):
    """A plugin violated its contract, for example by returning tensors of other shapes."""


class StepError(ProjcoreError, RuntimeError):
    """A step cannot be taken: no closure, or a gradient that cannot be used."""


class NonFiniteError(StepError):
    """A step would compute with Inf or NaN with lasting but hidden damage.

    Attributes:
        skip: Whether to skip the step instead of raising: then `Optimizer.step` changes nothing,
            and returns as if there had been no gradient.
    """

    def __init__(self, message: str, skip: bool = False) -> None:
        super().__init__(message)
        self.skip = skip


class CheckpointError(ProjcoreError, ValueError):
    """A saved state does not fit the optimizer into which it is loaded."""


class SpecError(ProjcoreError, ValueError):
    """A spec cannot be read, or a module cannot be written as one."""


class UnknownNameError(ProjcoreError, LookupError):
    """No component has that name, or several do."""


class PluginError(ProjcoreError, ImportError):
    """A plugin, or one of its components, cannot be loaded."""


class ProjcoreWarning(UserWarning):
    """Base of all warnings of this library; issued itself for a value that is kept but not used."""


class StepSizeWarning(ProjcoreWarning):
    """Nothing sets the step size of an optimizer, so that it trains at rate 1."""


class PluginWarning(ProjcoreWarning):
    """A plugin, or a switch for plugins, does not work; everything else does."""


def closest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """Returns the choices closest to `name`, the best first; case, ``-``, ``_`` are ignored.

    Example:
        >>> closest("Clip-Norm", ["clip_norm", "lr"])
        ['clip_norm']
    """
    plain = {_plain(choice): choice for choice in reversed(list(choices))}
    near = difflib.get_close_matches(_plain(name), plain, n=count, cutoff=0.7)
    return [plain[each] for each in near]


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` with the choice that is closest to `name`, or an empty string.

    Example:
        >>> suggest("adm", ["adam", "lr"])
        " Did you mean 'adam'?"
    """
    near = closest(name, choices)
    return f" Did you mean {near[0]!r}?" if near else ""


def within_one_typo(name: str, other: str) -> bool:
    """Whether names differ by one inserted, deleted, replaced or transposed letter.

    Or by none: case, ``-`` and ``_`` are ignored. Names of one letter never match another.

    Example:
        >>> within_one_typo("weight_decy", "weight_decay"), within_one_typo("name", "rank")
        (True, False)
    """
    one, two = sorted((_plain(name), _plain(other)), key=len)
    if len(one) < 2:
        return one == two
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    if len(one) < len(two):
        return one[at:] == two[at + 1 :]
    exchanged = one[at : at + 2] == two[at : at + 2][::-1] and one[at + 2 :] == two[at + 2 :]
    return one[at + 1 :] == two[at + 1 :] or exchanged


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
