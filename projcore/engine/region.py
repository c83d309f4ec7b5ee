"""Regions: the nodes that run in one space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from projcore.core.objective import Objective
from projcore.core.space import Space
from projcore.core.state import Entries, State
from projcore.core.writer import Blend, Write
from projcore.engine.commit import Later
from projcore.engine.ending import Ending
from projcore.engine.nodes import Frame, Node, Observe
from projcore.engine.passes.fold import fold
from projcore.engine.passes.fuse import fuse
from projcore.engine.passes.split import split
from projcore.engine.passes.trace import trace, traced

REWRITES = {"trace": trace, "fold": fold, "fuse": fuse}


class Region:
    """The nodes that run in one space.

    Attributes:
        space: The tensors.
        nodes: The nodes, in order.
        passes: The names of the passes that may rewrite its ending.
    """

    def __init__(
        self,
        space: Space,
        nodes: list[Node],
        notes: list[tuple[State, str, Sequence[float]]],
        passes: frozenset[str],
    ) -> None:
        self.space = space
        self.nodes = nodes
        self.passes = passes
        self._notes = notes  # state that follows from the plan
        self._trees: Sequence[Entries] = space.state.trees
        self._ending: Ending | None = None
        self._runs = 0

    def part(self, places: Sequence[int], alone: bool = False) -> Region | None:
        """Returns the region for some of the tensors, or None if a node cannot be split."""
        index = {place: k for k, place in enumerate(places)}
        parts = [node.part(index, alone) for node in self.nodes]
        if None in parts:
            return None
        nodes = [node for node in parts if node is not None and node.where]
        return Region(replace(self.space.select(places), region_indices=()), nodes, [], self.passes)

    @property
    def ending(self) -> Ending:
        """The end of the region if its tensors are the parameters; rewritten by the passes."""
        if self._ending is None:
            observers = [node for node in self.nodes if isinstance(node, Observe)]
            others = [node for node in self.nodes if not isinstance(node, Observe)]
            ending = Ending(self.space, tuple(others), observers=tuple(observers))
            for name, rewrite in REWRITES.items():
                if name in self.passes:
                    ending = rewrite(ending)
            self._ending = ending
        return self._ending

    @cached_property
    def runs(self) -> Sequence[Node]:
        """The nodes to run; in compiled steps, traceable ones are merged into `Traced` nodes."""
        return traced(self.nodes) if "trace" in self.passes else self.nodes

    def run(self, update: list[Tensor], objective: Objective, whole: bool = False) -> list[Tensor]:
        """Runs all nodes; returns the update. For `whole`, see `Frame`."""
        frame = Frame(list(update), objective, whole)
        for node in self.nodes if whole else self.runs:
            node.run(frame)
        return frame.update

    def writes(
        self, frame: Frame, targets: list[Tensor], outer: Sequence[Blend] | None = None
    ) -> list[Write | Later]:
        """Runs all nodes and returns the writes of the parameters; see `Ending.writes`."""
        self._runs += 1
        if self._runs == 2 and "split" in self.passes:  # after a step, the writers are known
            self._ending = split(self.ending, targets)
            self._bind_blocks()
        return self.ending.writes(frame, targets, outer)

    def create_state(self, objective: Objective) -> None:
        """Creates the state of all nodes that does not exist yet."""
        for node in self.nodes:
            node.create_state(objective)

    def bind(self, trees: Sequence[Entries]) -> None:
        """Binds all nodes to the state at the same positions in other trees."""
        self._trees = trees
        for node in self.nodes:
            node.bind(trees)
        self._bind_blocks()
        self.renote()

    def _bind_blocks(self) -> None:
        for block in self._ending.blocks if self._ending is not None else ():
            for node in (*block.nodes, *block.writers):
                node.bind(self._trees)

    def renote(self) -> None:
        """Restores entries of `Planner.note` that were removed."""
        for state, name, values in self._notes:
            for node, value in zip(state.over(self._trees).entries, values, strict=True):
                node[name] = value

    def walk(self) -> Iterator[Node]:
        """Yields all nodes, including those of the regions inside."""
        for node in self.nodes:
            yield node
            for region in node.regions():
                yield from region.walk()
