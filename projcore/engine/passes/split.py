"""Nodes that work on each tensor by itself run on a few tensors after the other.

So what they need beside the state is small, and stays in the cache between them. A number by which
all tensors are multiplied first, as a clipped norm makes it, is multiplied block by block, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from projcore.engine.commit import make_buckets
from projcore.engine.ending import Ending
from projcore.engine.nodes import Call, Node, has_factor

# Elements in a block, or one tensor: a few lists of so many fit a cache (measured: benchmarks/).
BLOCK = 1 << 20
# On accelerators it is memory that is spared, and launches are dear.
LARGE_BLOCK = 1 << 27


def split(ending: Ending, targets: Sequence[Tensor]) -> Ending:
    """Splits what comes last into blocks, if that spares anything."""
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
    chosen = range(len(targets)) if active is None else active
    size = block_size(targets[0]) if targets else 0
    blocks = make_buckets([target.numel() for target in targets], chosen, size)
    # Whether nothing is made but the parameters.
    direct = all(node.writes_directly and not node.owns for node in ending.writers)
    if len(blocks) < 2 or not (tail or factor or not direct):
        return ending
    later = not tail and all(node.repeatable for node in ending.writers)
    casts = any(any(node.regions()) for node in (*tail, *ending.writers))
    if not (targets[0].is_cpu or later or casts):
        return ending  # what calls make is kept until it is written, in blocks or not
    made = []
    for places in blocks:
        index = {place: k for k, place in enumerate(places)}
        block = Ending(
            replace(ending.space.select(places), places=places),
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
    """Whether a node multiplies all tensors that have a gradient by one number."""
    if not has_factor(node.module):
        return False
    active = ending.space.active
    return set(node.where) == set(range(len(ending.space)) if active is None else active)


def block_size(target: Tensor) -> int:
    """Returns how many elements a block has that begins with a tensor, if it has several."""
    return BLOCK if target.is_cpu else LARGE_BLOCK


def _parts(nodes: Sequence[Node], index: Mapping[int, int]) -> tuple[Any, ...]:
    """Returns nodes for some of the tensors, without those that have none of these."""
    parts = [node.part(index) for node in nodes]
    return tuple(part for part in parts if part is not None and part.where)
