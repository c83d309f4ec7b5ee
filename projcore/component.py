"""Entries of the registry: components, and the plugins that provide them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from projcore.errors import ArgumentError, ArgumentTypeError

Kind = Literal["projection", "module", "choice", "recipe"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Status = Literal["loaded", "failed", "disabled", "conflict", "incompatible", "corrupt"]
Example = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Component:
    """A registered projection, module, choice or recipe; its class is imported when first used.

    Attributes:
        name: How specs call it.
        kind: ``"projection"``, ``"module"``, ``"choice"`` or ``"recipe"``.
        target: ``"package.module:Name"``.
        summary: What it does, one sentence.
        paper: Its source.
        tags: Words to find it by, and those that say which laws it keeps.
        aliases: Its other names.
        example: Keyword arguments that build a working instance, or a list of such.
        plugin: The plugin that provides it.
        distribution: The distribution that the plugin came in; None if registered by hand.
        version: The version of that distribution.
    """

    name: str
    kind: Kind
    target: str
    summary: str
    paper: str | None
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    example: Example | None
    plugin: str
    distribution: str | None
    version: str | None

    @property
    def qualified(self) -> str:
        """The name that never clashes: ``"plugin:name"``."""
        return f"{self.plugin}:{self.name}"

    @property
    def stands_alone(self) -> bool:
        """Whether it is a recipe: specs hold all others, so recipes have names of their own."""
        return self.kind == "recipe"

    @property
    def attribute(self) -> str:
        """The name of its class or function, by which it is imported."""
        return self.target.partition(":")[2]

    @property
    def provider(self) -> str:
        return provider(self.distribution, self.version)


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found, and what became of it.

    Attributes:
        name: The name of its entry point, with ``_`` for ``-``.
        distribution: The distribution it came in; None if registered by hand.
        version: The version of that distribution.
        entry_point: The module that the entry point names.
        status: ``"loaded"``; or ``"failed"`` when it raised, ``"incompatible"`` when it was
            written for another plugin API, ``"corrupt"`` when its metadata cannot be read,
            ``"disabled"`` by a switch, ``"conflict"`` when it works but shares a name with
            another.
        cause: Why it is not simply loaded.
        fix: What to do.
        traceback: Where it failed.
        offered: The names it would have provided, as far as known.
        slow: Finding it imported torch, so that every command waits for it.
    """

    name: str
    distribution: str | None = None
    version: str | None = None
    entry_point: str = ""
    status: Status = "loaded"
    cause: str = ""
    fix: str = ""
    traceback: str = ""
    offered: tuple[str, ...] = ()
    slow: bool = False

    @property
    def provider(self) -> str:
        return provider(self.distribution, self.version)

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.provider})"


def provider(distribution: str | None, version: str | None) -> str:
    """Returns a distribution and its version in words."""
    if distribution is None:
        return "registered by hand"
    return f"{distribution} {version}" if version else distribution


def make_component(
    plugin: Plugin,
    kind: Kind,
    name: str,
    target: str,
    *,
    summary: str,
    paper: str | None = None,
    tags: Sequence[str] = (),
    aliases: Sequence[str] = (),
    example: Example | None = None,
) -> Component:
    """Checks the facts that a plugin registers, without importing the component.

    Raises:
        ArgumentError: If a value is malformed.
        ArgumentTypeError: If a value has the wrong type.
    """
    who = f"register({name!r}, ...)"
    if not isinstance(target, str):
        raise ArgumentTypeError(
            f"{who} was given the target {target!r}. It must be a string, so that "
            "nothing is imported before it is used. Pass 'package.module:Name'."
        )
    for value, what in ((tags, "tags"), (aliases, "aliases")):
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ArgumentTypeError(
                f"{who} was given {what}={value!r}. {what} is a tuple of strings. "
                f"Pass {what}=('...',)."
            )
    for word in (name, *aliases):
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ArgumentError(
                f"{who} was given the name {word!r}. A name has lower-case letters, digits and _, "
                "a letter first. Rename it."
            )
    if not _TARGET.fullmatch(target):
        raise ArgumentError(
            f"{who} was given the target {target!r}. It names a class in a module. "
            "Pass 'package.module:Name'."
        )
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise ArgumentError(
            f"{who} was given summary={summary!r}. A summary is one line. Say what it does."
        )
    return Component(
        name=name,
        kind=kind,
        target=target,
        summary=summary,
        paper=paper,
        tags=tuple(tags),
        aliases=tuple(aliases),
        example=example,
        plugin=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
    )
