"""State under flat names, as it is kept in ``optimizer.state``, and as a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projcore._trees import SHARED
from projcore.core.state import Node


def unflatten(flat: Mapping[str, Any]) -> Node:
    """Turns ``{"1/modules/0/exp_avg": x}`` into ``{"1": {"modules": {"0": {"exp_avg": x}}}}``."""
    tree: Node = {}
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


def flatten(tree: Node) -> dict[str, Any]:
    """Undoes `unflatten`; empty branches vanish."""
    flat: dict[str, Any] = {}
    _gather(tree, "", flat)
    return flat


def _gather(tree: Node, prefix: str, flat: dict[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _gather(value, f"{prefix}{name}/", flat)
        else:
            flat[prefix + name] = value


def module_path(key: str) -> str:
    """Returns the position of the module that an entry belongs to."""
    parents = [part.partition(":")[0] for part in key.split("/")[:-1]]
    return "/".join(part for part in parents if part not in (SHARED, "items"))


def is_shared(key: str) -> bool:
    """Whether an entry belongs to no single tensor of its space."""
    return SHARED in key.split("/")
