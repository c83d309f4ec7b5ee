"""Lets nodes that are last for their tensors, and have a writer, write the parameters."""

from __future__ import annotations

from dataclasses import replace

from projcore.engine.ending import Ending
from projcore.engine.passes.last import is_last


def fuse(ending: Ending) -> Ending:
    """Moves such nodes from the nodes that run first to the writers."""
    nodes, writers = list(ending.nodes), list(ending.writers)
    for k in reversed(range(len(nodes))):
        if nodes[k].can_write and is_last([*nodes, *writers], k):
            writers.insert(0, nodes[k])
            del nodes[k]
    return replace(ending, nodes=tuple(nodes), writers=tuple(writers))
