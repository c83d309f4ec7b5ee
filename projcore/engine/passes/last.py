"""Whether a node is the last one for its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from projcore.engine.nodes import Node


def is_last(nodes: Sequence[Node], k: int) -> bool:
    """Whether no node after the one at index `k` changes or reads one of its tensors."""
    own = set(nodes[k].where)
    return all(own.isdisjoint(node.where) for node in nodes[k + 1 :])
