"""Finds installed plugins by the metadata of their distributions, without importing them."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import importlib_metadata

from projcore.component import Plugin

GROUP = "projcore"


@dataclass(frozen=True)
class Found:
    """An installed plugin.

    Attributes:
        plugin: What its metadata says; ``plugin.name`` differs from that of all others.
        names: All its names in switches and qualified names.
        load: Imports its hook module; None if its metadata is corrupt.
        editable: It is installed in editable mode.
    """

    plugin: Plugin
    names: frozenset[str]
    load: Callable[[], object] | None
    editable: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return canonical(self.plugin.distribution or ""), self.plugin.entry_point

    def named_by_distribution(self) -> Found:
        """Returns this plugin under the name of its distribution, if its own is taken."""
        return replace(self, plugin=replace(self.plugin, name=self.key[0]))


def canonical(name: str) -> str:
    """Returns the canonical form of a name: lower case, with ``_`` for separators.

    Example:
        >>> canonical("projcore-LowRank")
        'projcore_lowrank'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def scan() -> list[Found]:
    """Returns the plugins of all distributions on ``sys.path``, the first of each name there.

    If two entry points have the same name, each plugin gets the name of its distribution, so that
    the order on the path does not matter.
    """
    importlib.invalidate_caches()
    found: list[Found] = []
    seen: set[str] = set()
    for distribution in importlib_metadata.distributions():
        if _folder(distribution).name.startswith("~"):
            continue  # left by pip when it cannot delete the old version
        plugins = _plugins(distribution)
        for plugin in plugins:
            name = plugin.key[0]
            if plugin.load is None or name not in seen:
                found.append(plugin)
        seen.update(plugin.key[0] for plugin in plugins if plugin.load is not None)
    counts = Counter(each.plugin.name for each in found if each.load is not None)
    return [
        each.named_by_distribution() if counts[each.plugin.name] > 1 else each for each in found
    ]


def _plugins(distribution: Any) -> list[Found]:
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        ours = GROUP.encode() in error.object
        return [_corrupt(distribution, f"entry_points.txt is not text: {error}")] if ours else []
    except Exception:
        return []  # unreadable, and nothing says that it is ours
    if f"[{GROUP}]" not in text:
        return []
    try:
        points = [point for point in distribution.entry_points if point.group == GROUP]
        made = [(canonical(point.name), point) for point in points]
    except Exception as error:
        return [_corrupt(distribution, f"entry_points.txt cannot be read: {error!r}")]
    name, version = _identity(distribution)
    if not name or not version:
        return [
            _corrupt(distribution, "METADATA is missing, or lacks the name or the version", plugin)
            for plugin, _ in made
        ]
    editable = _is_editable(distribution)
    return [
        Found(
            Plugin(plugin, name, version, point.value),
            frozenset({plugin, canonical(name)}),
            point.load,
            editable,
        )
        for plugin, point in made
    ]


def _identity(distribution: Any) -> tuple[str | None, str | None]:
    """Returns name and version, as far as the metadata says them.

    Its head is read here and not parsed as an e-mail, which takes as long as all else together.
    """
    text = None
    for file in ("METADATA", "PKG-INFO"):
        with suppress(Exception):
            text = text or distribution.read_text(file)
    head = (text or "").replace("\r\n", "\n").partition("\n\n")[0]
    fields = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)", head, flags=re.MULTILINE))
    return fields.get("Name"), fields.get("Version")


def _corrupt(distribution: Any, cause: str, plugin: str | None = None) -> Found:
    folder = _folder(distribution)
    stem = folder.name.removesuffix(".dist-info").removesuffix(".egg-info")
    name, _, version = stem.partition("-")
    name = name or "unknown"
    found = Plugin(
        plugin or canonical(name).removeprefix(f"{GROUP}_"),
        name,
        version or None,
        status="corrupt",
        cause=cause,
        fix=f"Delete {folder} and install {name} again.",
    )
    return Found(found, frozenset({found.name, canonical(name)}), None)


def _folder(distribution: Any) -> PurePath:
    return PurePath(str(getattr(distribution, "_path", "")))


def _is_editable(distribution: Any) -> bool:
    with suppress(Exception):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return bool(origin.get("dir_info", {}).get("editable"))
    return False
