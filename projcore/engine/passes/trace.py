"""Compiles each maximal run of traceable nodes into one function.

The other nodes run in Python between them. Operations of a node that run in Python first
(`Node.begin`, such as the refresh of a projection's map) run before the compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from projcore._contexts import StepContext
from projcore.core.objective import Objective
from projcore.core.space import Space
from projcore.core.state import Entries
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.ending import Ending
from projcore.engine.nodes import Call, Frame, Node
from projcore.engine.sketch import Sketch
from projcore.engine.tree import is_affine


def trace(ending: Ending) -> Ending:
    """Traces runs of nodes; the last run, if no node follows it, also writes the parameters."""
    nodes = traced(ending.nodes)
    last = nodes[-1] if nodes else None
    # Affine calls alone are folded into the write, which is cheaper.
    if not isinstance(last, Traced) or all(
        isinstance(node, Call) and is_affine(node.module) for node in last.nodes
    ):
        left = last.nodes if isinstance(last, Traced) else nodes[-1:]
        return replace(ending, nodes=(*nodes[:-1], *left))
    active = ending.space.active
    last.where = range(len(ending.space)) if active is None else active
    last.together = alike(ending.space, last.where)
    return replace(ending, nodes=tuple(nodes[:-1]), writers=(last,))


def traced(nodes: Sequence[Node]) -> list[Node]:
    """Returns nodes, with runs of traceable ones replaced by `Traced` nodes."""
    found: list[Node] = []
    run: list[Node] = []
    for node in nodes:
        late = node.begins and any(not set(node.where).isdisjoint(other.where) for other in run)
        if run and (late or node.untraceable):
            found.append(Traced(run))
            run = []
        if node.untraceable:
            found.append(node)
        else:
            run.append(node)
    return [*found, Traced(run)] if run else found


class Traced(Node):
    """A run of nodes, as one compiled function.

    It runs in Python the first time, and whenever state has to be created.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.where = sorted({i for node in nodes for i in node.where})
        self.needs = frozenset().union(*(node.module.total_needs for node in nodes))
        # If it writes: those of `where` that torch takes in one list.
        self.together: Sequence[Sequence[int]] = ()
        self._has_run = False
        self._compiled: Callable[..., list[Tensor]] | None = None

    def bind(self, trees: Sequence[Entries]) -> None:
        for node in self.nodes:
            node.bind(trees)

    def create_state(self, objective: Objective) -> None:
        for node in self.nodes:
            node.create_state(objective)

    def run(self, frame: Frame) -> None:
        if self._begin(frame):
            self._replace(frame)

    def writes(
        self, frame: Frame, targets: Sequence[Tensor], blends: Sequence[Blend]
    ) -> list[Write | Later]:
        if self._begin(frame):
            if blends.count(Blend()) == len(blends):
                return [Write(targets[self.where[0]], partial(self._call, frame, targets))]
            self._replace(frame)
        return [*blended(targets, frame.update, blends, self.together)]

    def _replace(self, frame: Frame) -> None:
        """Runs the nodes in one graph, and puts their result into the update."""
        for i, tensor in zip(self.where, self._call(frame), strict=True):
            frame.update[i] = tensor

    def _begin(self, frame: Frame) -> bool:
        """Runs everything that needs Python; returns whether the graph has to run afterwards."""
        for node in self.nodes:
            node.begin(frame)
        compiles = frame.objective.context.compiler is not None
        if compiles and self._has_run and all(node.is_settled for node in self.nodes):
            return bool(self.where)
        self._has_run = True
        whole = frame._replace(whole=True)
        for node in self.nodes:
            node.finish(whole)
        return False

    def _call(self, frame: Frame, targets: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Runs the nodes in one graph, which writes the targets if these are given."""
        objective = frame.objective
        context = objective.context
        if self._compiled is None:
            assert context.compiler is not None
            self._compiled = context.compiler(_run_nodes)
        context.changed = True
        return self._compiled(
            self.nodes,
            self.where,
            objective.space,
            context.traced(),
            frame.update,
            objective.template if targets is None else targets,
            objective.params if targets is None and "params" in self.needs else None,
            objective.grads if "grads" in self.needs else None,
            objective.loss if "loss" in self.needs else None,
            targets is not None,
        )


def _run_nodes(
    nodes: Sequence[Node],
    where: Sequence[int],
    space: Space,
    context: StepContext,
    update: Sequence[Tensor],
    template: Sequence[Tensor],
    params: list[Tensor] | None,
    grads: list[Tensor] | None,
    loss: Tensor | None,
    writes: bool,
) -> list[Tensor]:
    """The function that is traced: runs nodes. If it writes, the template holds the targets."""
    placeholders = [tensor.detach() for tensor in template]
    facts = Sketch(space, context, placeholders, params, grads, loss)
    frame = Frame(list(update), facts, whole=True)
    for node in nodes:
        node.finish(frame)
    if not writes:
        return [frame.update[i] for i in where]
    torch._foreach_sub_([template[i] for i in where], [frame.update[i] for i in where])
    return []
