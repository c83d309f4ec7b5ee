"""State: everything that outlives a step, kept by position and never by tensor identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from projcore._trees import SHARED, Trees, below, find_node

Node = dict[str, Any]


class State(Trees):
    """State of one module in one space: a dict for each tensor, and one for the space as a whole.

    Tensor `i` of the space keeps its state in ``nodes[i]``; what belongs to no single tensor is in
    ``shared``. Values are tensors and plain numbers. Children of the module have a state of their
    own, reached by name with `child`.

    Attributes:
        nodes: One dict for each tensor of the space.
        path: Position of the module in the tree, for example ``"1/modules/0"``.
    """

    __slots__ = ()
    nodes: list[Node]
    path: str

    @property
    def shared(self) -> Node:
        """State that belongs to no single tensor; it is saved with the first of the space."""
        return find_node(self.trees, below(self._anchor, SHARED))

    def child(self, name: str) -> State:
        """Returns the state of the child of that name, in the same space."""
        homes = [below(home, name) for home in self._homes]
        path = f"{self.path}/{name}" if self.path else name
        return State(self.trees, homes, below(self._anchor, name), path)

    def select(self, indices: Sequence[int]) -> State:
        """Returns the state of some of the tensors; ``shared`` stays that of the whole space."""
        return State(self.trees, [self._homes[i] for i in indices], self._anchor, self.path)
