"""The environment variables by which users choose their plugins."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from projcore._scan import canonical

DISABLE = "PROJCORE_DISABLE_PLUGINS"
ALLOW = "PROJCORE_PLUGINS"
STRICT = "PROJCORE_STRICT_PLUGINS"


@dataclass(frozen=True)
class Switches:
    """The environment variables about plugins.

    Attributes:
        disabled: Names from ``PROJCORE_DISABLE_PLUGINS``; ``*`` is all.
        allowed: Names from ``PROJCORE_PLUGINS``; None, as when it is empty, is all.
        strict: Whether ``PROJCORE_STRICT_PLUGINS`` makes a bad plugin an error.
    """

    disabled: frozenset[str]
    allowed: frozenset[str] | None
    strict: bool

    @classmethod
    def read(cls) -> Switches:
        """Returns the switches as they are now."""
        allowed = _tokens(ALLOW)
        strict = os.environ.get(STRICT, "").strip().lower() not in ("", "0", "false", "no")
        return cls(_tokens(DISABLE), allowed or None, strict)

    def forbids(self, names: frozenset[str]) -> str | None:
        """Returns the variable that switches off the plugin of these names, or None."""
        if "*" in self.disabled or names & self.disabled:
            return DISABLE
        if self.allowed is not None and not names & self.allowed and "*" not in self.allowed:
            return ALLOW
        return None

    def unmatched(self, names: Iterable[frozenset[str]]) -> list[tuple[str, str]]:
        """Returns each variable and name in it that no plugin has."""
        known = frozenset[str]().union({"*"}, *names)
        given = [(DISABLE, self.disabled), (ALLOW, self.allowed or frozenset())]
        return [(variable, token) for variable, tokens in given for token in sorted(tokens - known)]


def _tokens(variable: str) -> frozenset[str]:
    words = (word.strip() for word in os.environ.get(variable, "").split(","))
    return frozenset(word if word == "*" else canonical(word) for word in words if word)
