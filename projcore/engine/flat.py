"""Converts state between flat names, as in ``optimizer.state``, and a tree of dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projcore._trees import SHARED
from projcore.core.state import Entries


def unflatten(flat: Mapping[str, Any]) -> Entries:
    """Turns ``{"1/modules/0/exp_avg": x}`` into ``{"1": {"modules": {"0": {"exp_avg": x}}}}``."""
    tree: Entries = {}
    branches = {"": tree}
    for key, value in flat.items():
        above, _, name = key.rpartition("/")
        if above not in branches:
            node = tree
            for parent in above.split("/"):
                node = node.setdefault(parent, {})
            branches[above] = node
        branches[above][name] = value
    return tree


def flatten(tree: Entries) -> dict[str, Any]:
    """The inverse of `unflatten`; empty dicts are dropped."""
    flat: dict[str, Any] = {}
    _flatten(tree, "", flat)
    return flat


def _flatten(tree: Entries, prefix: str, flat: dict[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}/", flat)
        else:
            flat[prefix + name] = value


def module_path(key: str) -> str:
    """Returns the position of the module that an entry belongs to."""
    parents = [part.partition(":")[0] for part in key.split("/")[:-1]]
    return "/".join(part for part in parents if part not in (SHARED, "items"))


def is_shared(key: str) -> bool:
    """Whether an entry belongs to no single tensor of its space."""
    return SHARED in key.split("/")
