"""Folds affine calls that are last for their tensors into the write of the parameters."""

from __future__ import annotations

from dataclasses import replace

from projcore.engine.ending import Ending
from projcore.engine.nodes import Call
from projcore.engine.passes.last import is_last
from projcore.engine.tree import is_affine


def fold(ending: Ending) -> Ending:
    """Folds calls of the form ``u -> a * u + b * p``, from the end, as long as there are any."""
    nodes, folded = list(ending.nodes), list(ending.folded)
    for k in reversed(range(len(nodes))):
        node = nodes[k]
        if (
            isinstance(node, Call)
            and is_affine(node.module)
            and is_last([*nodes, *ending.writers], k)
        ):
            folded.insert(0, node)
            del nodes[k]
    return replace(ending, nodes=tuple(nodes), folded=tuple(folded))
