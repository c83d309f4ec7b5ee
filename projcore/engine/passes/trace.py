"""The longest runs of nodes that can be traced become one compiled function each.

What cannot be traced stays in Python between them. What a node does in Python before (`Node.begin`,
as a projection that refreshes its map) is done before its run.
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
from projcore.core.state import Node as Entries
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.ending import Ending
from projcore.engine.nodes import Call, Frame, Node
from projcore.engine.sketch import Sketch
from projcore.engine.tree import is_affine


def trace(ending: Ending) -> Ending:
    """Traces runs of nodes; the last, if nothing follows it, writes the parameters as well."""
    nodes = traced(ending.nodes)
    last = nodes[-1] if nodes else None
    # Affine calls alone become numbers of what writes, which takes no pass.
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
    """Returns nodes with traced runs in the place of those that can be traced."""
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

    It runs in Python the first time, and whenever there is state to be created.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.where = sorted({place for node in nodes for place in node.where})
        self.needs = frozenset().union(*(node.module.total_needs for node in nodes))
        self.together: Sequence[Sequence[int]] = ()  # of where, if it writes
        self._has_run = False
        self._compiled: Callable[..., list[Tensor]] | None = None

    def bind(self, trees: Sequence[Entries]) -> None:
        for node in self.nodes:
            node.bind(trees)

    def remember(self, objective: Objective) -> None:
        for node in self.nodes:
            node.remember(objective)

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
        """Runs the nodes in one graph, and takes the update that they make."""
        for i, tensor in zip(self.where, self._call(frame), strict=True):
            frame.update[i] = tensor

    def _begin(self, frame: Frame) -> bool:
        """Does all that is to be done in Python; returns whether the rest is left."""
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
        """Runs the nodes in one graph; with targets, it writes these."""
        objective = frame.objective
        context = objective.context
        if self._compiled is None:
            assert context.compiler is not None
            self._compiled = context.compiler(_run)
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


def _run(
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
    """Runs nodes; what is traced. If it writes, the template is of what is written."""
    placeholders = [tensor.detach() for tensor in template]
    facts = Sketch(space, context, placeholders, params, grads, loss)
    frame = Frame(list(update), facts, whole=True)
    for node in nodes:
        node.finish(frame)
    if not writes:
        return [frame.update[i] for i in where]
    torch._foreach_sub_([template[i] for i in where], [frame.update[i] for i in where])
    return []
