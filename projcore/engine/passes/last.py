"""Which nodes are the last to make the update of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from projcore.engine.nodes import Node


def is_last(nodes: Sequence[Node], k: int) -> bool:
    """Whether no node after the one at `k` changes one of its tensors, or reads it."""
    own = set(nodes[k].where)
    return all(own.isdisjoint(node.where) for node in nodes[k + 1 :])
