"""Memory: everything that outlives a step, kept by position and never by tensor identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHARED = "shared"

Node = dict[str, Any]


class State:
    """Memory of one module in one space: a dict for each tensor, and one for the space as a whole.

    Tensor `i` of the space keeps its memory in ``nodes[i]``; what belongs to no single tensor is in
    ``shared``. Values are tensors and plain numbers. Children of the module have a state of their
    own, reached by name with `child`.

    Attributes:
        nodes: One dict for each tensor of the space.
        path: Position of the module in the tree, for example ``"1/modules/0"``.
    """

    __slots__ = ("_anchor", "nodes", "path")

    def __init__(self, nodes: list[Node], anchor: Node, path: str = "") -> None:
        self.nodes = nodes
        self.path = path
        self._anchor = anchor

    @property
    def shared(self) -> Node:
        """Memory that belongs to no single tensor; it is saved with the first of the space."""
        shared: Node = self._anchor.setdefault(SHARED, {})
        return shared

    def child(self, name: str) -> State:
        """Returns the memory of the child of that name, in the same space."""
        nodes = [node.setdefault(name, {}) for node in self.nodes]
        path = f"{self.path}/{name}" if self.path else name
        return State(nodes, self._anchor.setdefault(name, {}), path)

    def select(self, indices: Sequence[int]) -> State:
        """Returns the memory of some of the tensors; ``shared`` stays that of the whole space."""
        return State([self.nodes[i] for i in indices], self._anchor, self.path)

    def inside(self, name: str, origins: Sequence[Sequence[int]], path: str) -> State:
        """Returns the memory of a space whose tensor `j` is made from the tensors ``origins[j]``.

        It is kept with the first of these; where several share it, they are told apart by number.
        """
        used: dict[int, int] = {}
        nodes = []
        for origin in origins:
            first = origin[0]
            count = used.get(first, 0)
            used[first] = count + 1
            nodes.append(self.nodes[first].setdefault(f"{name}:{count}" if count else name, {}))
        return State(nodes, self._anchor.setdefault(name, {}), path)


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


def replace_entries(live: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Makes a dict hold other entries. It stays the same dict, so that state dicts show them."""
    live.update(entries)
    if len(live) > len(entries):
        for key in live.keys() - entries.keys():
            del live[key]
