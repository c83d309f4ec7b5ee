"""Looks up names, and explains why a name is not found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from projcore._known import KNOWN, Known
from projcore._outcome import BAD, story
from projcore._scan import canonical
from projcore._switches import DISABLE
from projcore.component import KINDS, Component, Kind, Plugin
from projcore.errors import closest
from projcore.manager import Manager

By = Literal["name", "attribute"]
MOST = 5  # names in a message
HABITUAL = {
    "sgd": "Gradient descent is the learning rate alone: Optimizer(model, LR(0.1)); with momentum, "
    "Optimizer(model, HeavyBall(0.9), lr=0.1)."
}
"""Names of torch's optimizers that no component has, and modules that do the same."""


def find(manager: Manager, kinds: Sequence[Kind], name: str, by: By = "name") -> list[Component]:
    """Returns the components that match a name: normally one.

    A qualified name stands for one at most; an exact name beats an alias.
    """
    among = [component for component in manager.components if component.kind in kinds]
    if by == "attribute":
        return [component for component in among if component.attribute == name]
    plugin, colon, short = name.rpartition(":")
    if colon:
        among = [each for each in among if plugin in manager.names(each.plugin)]
    exact = [component for component in among if component.name == short]
    return exact or [component for component in among if short in component.aliases]


def noun(kinds: Sequence[Kind]) -> str:
    """Returns the noun for components of these kinds."""
    return kinds[0] if len(kinds) == 1 else "component"


def several(kinds: Sequence[Kind], name: str, found: Sequence[Component], by: By = "name") -> str:
    """Returns the message for a name that several components have."""
    names = ", ".join(sorted(f"{each.qualified!r} ({each.provider})" for each in found))
    plugins = {each.plugin for each in found}
    fix = "Use the qualified name" if by == "name" else "Import it from its own package"
    return (
        f"{noun(kinds)} {name!r} is provided by {len(plugins)} plugins: {names}. "
        f"{fix}, or disable one with {DISABLE}."
    )


def missing(
    manager: Manager, kinds: Sequence[Kind], name: str, by: By = "name"
) -> tuple[str, bool]:
    """Returns the message for an unknown name, and whether it gives a reason."""
    plugin, colon, short = name.rpartition(":")
    start = f"no {noun(kinds)} named {name!r}."
    known = [
        each
        for each in KNOWN
        if each.kind in kinds
        and short in ((each.attribute,) if by == "attribute" else (each.name, *each.aliases))
        and (not colon or plugin in (each.extra, canonical(each.distribution)))
    ]
    for reason in (
        HABITUAL.get(short.lower()),
        _in_bad_plugin(manager, plugin, short, known),
        _of_another_kind(manager, kinds, name, by),
        _not_installed(manager, known),
    ):
        if reason:
            return f"{start} {reason}", True
    suggestion = _suggestion(manager, kinds, short, by)
    ours = {each.distribution for each in KNOWN}
    perhaps = [
        f"{_capital(bad)}, which may provide it, {story(bad)}"
        for bad in manager.plugins
        if bad.status in (*BAD, "disabled") and bad.distribution not in ours
    ]
    installed = sorted({_called(each, by) for each in manager.components if each.kind in kinds})
    listed = f"Installed: {', '.join(installed) or 'none'}."
    if len(installed) > MOST:
        listed = f"Run 'projcore list' for all {len(installed)}."
    parts = [start, suggestion, listed, *perhaps]
    return " ".join(part for part in parts if part), bool(suggestion or perhaps)


def _in_bad_plugin(manager: Manager, plugin: str, short: str, known: Sequence[Known]) -> str | None:
    for bad in manager.plugins:
        if bad.status not in (*BAD, "disabled"):
            continue
        if (
            short in bad.offered
            or plugin == bad.name
            or any(each.distribution == bad.distribution for each in known)
        ):
            return f"It is provided by {bad}, which {story(bad)}"
    return None


def _of_another_kind(manager: Manager, kinds: Sequence[Kind], name: str, by: By) -> str | None:
    for kind in KINDS:
        known = [_called(each, by) for each in KNOWN if each.kind == kind]
        if kind not in kinds and (name in known or find(manager, [kind], name, by)):
            return f"There is a {kind} of that name: it belongs in {kind}s, not here."
    return None


def _not_installed(manager: Manager, known: Sequence[Known]) -> str | None:
    for each in known:
        for plugin in manager.plugins:
            if plugin.distribution == each.distribution and plugin.status != "corrupt":
                return (
                    f"It is provided by another version of {each.distribution!r} than the "
                    f"installed {plugin.version}: pip install -U 'projcore[{each.extra}]'"
                )
        return (
            f"It is provided by {each.distribution!r}, which is not installed: "
            f"pip install 'projcore[{each.extra}]'"
        )
    return None


def _suggestion(manager: Manager, kinds: Sequence[Kind], name: str, by: By) -> str:
    installed = [_called(each, by) for each in manager.components if each.kind in kinds]
    known = {_called(each, by): each for each in KNOWN if each.kind in kinds}
    near = [
        repr(each)
        if each in installed
        else f"{each!r} (needs pip install 'projcore[{known[each].extra}]')"
        for each in closest(name, [*installed, *known], MOST)
    ]
    if not near:
        return ""
    *others, last = near
    return f"Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _called(component: Component | Known, by: By) -> str:
    return component.attribute if by == "attribute" else component.name


def _capital(plugin: Plugin) -> str:
    text = str(plugin)
    return text[0].upper() + text[1:]
