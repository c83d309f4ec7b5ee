"""Where state is kept: in a tree of dicts for each parameter, that mirrors the tree of modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from projcore._bases import is_projection

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from projcore.core.module import Module

SHARED = "shared"

Tree = dict[str, Any]
Location = tuple[int, tuple[str, ...]]  # the index of a tree, and the keys that lead to its node


class Trees:
    """The nodes of one module in the trees of a space.

    Args:
        trees: The state of each parameter, as nested dicts.
        locations: Where each tensor's dict is; by default at the root of its tree.
        shared_location: Where the dict is that holds ``shared``.
        path: Position of the module in the tree, for example ``"1/modules/0"``.
    """

    __slots__ = ("_locations", "_shared_location", "entries", "path", "trees")

    def __init__(
        self,
        trees: Sequence[Tree],
        locations: Sequence[Location] | None = None,
        shared_location: Location = (0, ()),
        path: str = "",
    ) -> None:
        self.path = path
        self.trees = trees
        self._locations = [(i, ()) for i in range(len(trees))] if locations is None else locations
        self._shared_location = shared_location
        self.entries = [find_node(trees, location) for location in self._locations]

    def inside(self, name: str, origins: Sequence[Sequence[int]], path: str) -> Self:
        """Returns the state of a space whose tensor `j` is made from the tensors ``origins[j]``.

        It is kept with the first of these; where several share it, they are told apart by number.
        Without a name, it is kept where that tensor keeps its own.
        """
        used: dict[int, int] = {}
        locations = []
        for first, *_ in origins:
            count = used.get(first, 0)
            used[first] = count + 1
            location = self._locations[first]
            locations.append(
                below(location, f"{name}:{count}" if count else name) if name else location
            )
        shared_location = below(self._shared_location, name) if name else self._shared_location
        return type(self)(self.trees, locations, shared_location, path)

    def over(self, trees: Sequence[Tree]) -> Self:
        """Returns the state at the same locations in other trees."""
        return type(self)(trees, self._locations, self._shared_location, self.path)

    def located(self) -> Iterator[tuple[int, str, Tree]]:
        """Yields each tensor's tree, the prefix of its keys when flat, and its dict."""
        for (tree, keys), node in zip(self._locations, self.entries, strict=True):
            yield tree, "".join(f"{key}/" for key in keys), node


class Keeper(NamedTuple):
    """A module inside a projection that keeps state of some kind; see `keeper_inside`.

    Attributes:
        module: The module.
        entries: Its state for one tensor; empty before there is any.
        settings: Its settings for that tensor, as its group has them in this step.
    """

    module: Module
    entries: Tree
    settings: Mapping[str, Any]

    def first_of(self, kind: str) -> Tensor | None:
        """Returns the first of its entries of that kind, or None."""
        names = (n for n, found in self.module.kinds.items() if found == kind and n in self.entries)
        name = next(names, None)
        return None if name is None else self.entries[name]


def below(location: Location, name: str) -> Location:
    """Returns the location of the child of that name."""
    return location[0], (*location[1], name)


def find_node(trees: Sequence[Tree], location: Location) -> Tree:
    """Returns the dict at a location; it is created if there is none."""
    node = trees[location[0]]
    for key in location[1]:
        node = node.setdefault(key, {})
    return node


def find_entry(module: Module, node: Mapping[str, Any], kind: str) -> Tensor | None:
    """Returns the first entry of a kind, of a module or its children in the same space, or None."""
    for name, found in module.kinds.items():
        if found == kind and name in node:
            entry: Tensor = node[name]
            return entry
    if is_projection(module):
        return None
    for name, child in module.children.items():
        inside = find_entry(child, node.get(name, {}), kind)
        if inside is not None:
            return inside
    return None


def find_keeper(
    module: Module, node: Tree, kind: str, entry: Tensor | None, path: str
) -> tuple[Module, Tree, str] | None:
    """Returns the first module in this space that keeps a kind of entry, its dict and its path.

    Given an `entry`, it is the module whose state has that.
    """
    keeps = kind in module.kinds.values()
    if keeps and (entry is None or any(value is entry for value in node.values())):
        return module, node, path
    if is_projection(module):
        return None
    for name, child in module.children.items():
        found = find_keeper(child, node.get(name, {}), kind, entry, f"{path}/{name}")
        if found is not None:
            return found
    return None


def with_settings_inside(
    keys: dict[str, dict[str, str]], modules: Mapping[str, Module]
) -> dict[str, dict[str, str]]:
    """Returns the keys of settings, in which projections that ask for them have those inside.

    The settings of the module at ``"0/modules/1"`` are there for the projection at ``"0"`` under
    names such as ``"modules/1/betas"``.
    """
    made = dict(keys)
    for path, module in modules.items():
        if is_projection(module) and module.asks_inside:
            start = f"{path}/" if path else ""
            inside = {
                f"{other.removeprefix(start)}/{name}": key
                for other, names in keys.items()
                if other.startswith(f"{start}modules/")
                for name, key in names.items()
            }
            made[path] = {**keys.get(path, {}), **inside}
    return made
