"""State: everything that outlives a step, kept by position and never by tensor identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from projcore._trees import SHARED, Trees, below, find_node

Entries = dict[str, Any]


class State(Trees):
    """State of one module in one space: a dict for each tensor, and one for the space as a whole.

    The entries of tensor `i` are in ``entries[i]``; those that belong to no single tensor are in
    ``shared``. Values are tensors and plain numbers. Children of the module have a state of their
    own, which `child` returns by name.

    Attributes:
        entries: One dict for each tensor of the space.
        path: Position of the module in the tree, for example ``"1/modules/0"``.
    """

    __slots__ = ()
    entries: list[Entries]
    path: str

    @property
    def shared(self) -> Entries:
        """The entries that belong to no single tensor, saved with the first of the space."""
        return find_node(self.trees, below(self._shared_location, SHARED))

    def child(self, name: str) -> State:
        """Returns the state of the child of that name, in the same space."""
        locations = [below(location, name) for location in self._locations]
        path = f"{self.path}/{name}" if self.path else name
        return State(self.trees, locations, below(self._shared_location, name), path)

    def select(self, indices: Sequence[int]) -> State:
        """Returns the state of some of the tensors; ``shared`` stays that of the whole space."""
        locations = [self._locations[i] for i in indices]
        return State(self.trees, locations, self._shared_location, self.path)
