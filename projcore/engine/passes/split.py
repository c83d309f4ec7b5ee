"""Runs nodes that process each tensor separately on one block of a few tensors after the other.

So their temporaries are small, and stay in the cache from one node to the next. A factor of all
tensors that precedes them, such as that of a clipped norm, is also applied block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from projcore.engine.commit import make_buckets
from projcore.engine.ending import Ending
from projcore.engine.nodes import Call, Node, has_factor

# The largest number of elements in a block of several tensors, so that a few lists of them fit into
# a cache (measured: benchmarks/).
BLOCK = 1 << 21
# On accelerators blocks only save memory, and more blocks cost more launches.
LARGE_BLOCK = 1 << 27


def split(ending: Ending, targets: Sequence[Tensor]) -> Ending:
    """Splits the last nodes into blocks, if that saves memory."""
    nodes = list(ending.nodes)
    if not all(node.fits_blocks for node in ending.writers):
        return ending
    tail: list[Node] = []
    while nodes and nodes[-1].fits_blocks:
        tail.insert(0, nodes.pop())
    factor = None
    if nodes and _is_factor_of_all(nodes[-1], ending):
        factor = nodes.pop()
    active = ending.space.active
    indices = range(len(targets)) if active is None else active
    size = block_size(targets[0]) if targets else 0
    blocks = make_buckets([target.numel() for target in targets], indices, size)
    # Whether the writers have no temporaries.
    direct = all(node.writes_directly and not node.owns for node in ending.writers)
    if len(blocks) < 2 or not (tail or factor or not direct):
        return ending
    later = not tail and all(node.repeatable for node in ending.writers)
    casts = any(any(node.regions()) for node in (*tail, *ending.writers))
    if not (targets[0].is_cpu or later or casts):
        return ending  # the results of calls exist until they are written, in blocks or not
    made = []
    for indices in blocks:
        index = {i: k for k, i in enumerate(indices)}
        block = Ending(
            replace(ending.space.select(indices), region_indices=indices),
            nodes=_parts(tail, index),
            writers=_parts(ending.writers, index),
        )
        made.append(replace(block, later=later and not block.rest))
    assert factor is None or isinstance(factor, Call)
    return Ending(
        ending.space,
        tuple(nodes),
        ending.folded,
        observers=ending.observers,
        factor=factor,
        blocks=tuple(made),
    )


def _is_factor_of_all(node: Node, ending: Ending) -> bool:
    """Whether a node multiplies all tensors that have a gradient by one factor."""
    if not has_factor(node.module):
        return False
    active = ending.space.active
    return set(node.where) == set(range(len(ending.space)) if active is None else active)


def block_size(target: Tensor) -> int:
    """Returns the largest number of elements in a block of several tensors on a tensor's device."""
    return BLOCK if target.is_cpu else LARGE_BLOCK


def _parts(nodes: Sequence[Node], index: Mapping[int, int]) -> tuple[Any, ...]:
    """Returns the parts of nodes for some of the tensors, without empty parts."""
    parts = [node.part(index) for node in nodes]
    return tuple(part for part in parts if part is not None and part.where)
