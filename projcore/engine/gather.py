"""Sharded parameters (`DTensor`) under modules that need them unsharded.

Each parameter has an owner, one of the processes, which gets its full update, runs the
modules, keeps their state, and hands the result out. So each element is sent to its owner and back,
in two collectives for all parameters together, whatever the modules are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from projcore.core.module import Module
from projcore.core.projection import Current, ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.engine.inside import Inside
from projcore.engine.nodes import Node
from projcore.engine.shards import Team, Transfer
from projcore.ops import as_part


class Owners:
    """Which process owns each parameter of an optimizer; it stays so as long as that lives.

    Each gets about as many elements as the others: the largest parameter that has no owner goes to
    the process that has the least. That depends on names, shapes and order alone, so all processes
    find the same.
    """

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        self._teams: dict[Hashable, Team] = {}
        self._loads: dict[Hashable, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_owners": self._owners, "_teams": {}, "_loads": {}}  # groups are of this process

    def team(self, mesh: Any) -> Team:
        """Returns the processes of a mesh."""
        if mesh not in self._teams:
            self._teams[mesh] = Team(mesh)
        return self._teams[mesh]

    def assign(self, space: Space, mesh: Any) -> list[int]:
        """Returns the owner of each tensor of a space, by its number in the team of the mesh."""
        places = [place for (place,) in space.sources]
        loads = self._loads.setdefault(mesh, [0] * len(self.team(mesh)))
        new = [i for i, place in enumerate(places) if place not in self._owners]
        found = balance([space.template[i].shape for i in new], loads)
        for i, owner in zip(new, found, strict=True):
            self._owners[places[i]] = owner
        return [self._owners[place] for place in places]


def balance(shapes: Sequence[Sequence[int]], loads: list[int]) -> list[int]:
    """Returns who gets each of some tensors: the largest goes to who has least, and so on.

    Equal shapes come one after the other, since what is kept of them is equal, too.

    Args:
        shapes: Their shapes.
        loads: How many elements each has; it grows.

    Example:
        >>> balance([(2,), (3,), (5,)], [0, 0])
        [1, 1, 0]
    """
    sizes = [math.prod(shape) for shape in shapes]
    owners = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], *shapes[i])):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += sizes[i]
    return owners


class Gather(ProjectionBase):
    """Hands sharded tensors to their owners: inside there are the full ones of this process.

    What modules inside need beside the update comes with it.

    Args:
        module: What runs inside.
        transfer: The way of the tensors.
    """

    geometry = "layout"
    traceable = False

    def __init__(self, module: Module, transfer: Transfer) -> None:
        self.defaults, self.children, self.project_update = {}, {}, True
        self.module = module
        self.transfer = transfer
        self.needs = module.total_needs & {"params", "grads"}

    @property
    def sent(self) -> tuple[int, int]:
        """How many bytes this process sends in a step, to the owners and from them.

        Gradients that modules inside need, and that are not the update itself, come on top.
        """
        held, given = self.transfer.sent
        return (1 + ("params" in self.needs)) * held, given

    def part(self, chosen: Sequence[int]) -> Gather:
        """Returns the same for some of the tensors."""
        return Gather(self.module, self.transfer.part(chosen))

    def origins(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[i] for i in self.transfer.own]

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
        scratch: dict[str, list[Tensor]] | None = None,
    ) -> list[Tensor]:
        if tensors[0].is_meta:
            return [_without_storage(tensors[i]) for i in self.transfer.own]
        found: dict[str, list[Tensor]] = {} if scratch is None else scratch
        if current not in found:
            found[current] = self.transfer.collect(tensors)
            # What modules need comes at once: whether one asks for it differs between processes,
            # of which some may own nothing.
            if grads is not None:
                same = all(map(is_, tensors, grads))
                found["grads"] = found[current] if same else self.transfer.collect(grads)
            if "params" in self.needs:
                found["params"] = self.transfer.collect(params)
        return list(found[current])

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        if params[0].is_meta:
            return params
        parts = self.transfer.hand_out(list(projected_tensors))
        return list(map(as_part, parts, params))


class Gathered(Inside):
    """Runs modules that need tensors unsharded, on those that this process owns.

    The state of a tensor is where it is without shards.
    """

    projection: Gather

    @property
    def transfer(self) -> Transfer:
        """The way of the tensors."""
        return self.projection.transfer

    def part(self, index: Mapping[int, int]) -> Node | None:
        chosen = [k for k, place in enumerate(self.where) if place in index]
        own = [j for j, k in enumerate(self.transfer.own) if k in set(chosen)]
        region = None if self.region is None else self.region.part(own)
        if region is None:
            return None
        site = self.site.part(index)
        projection = self.projection.part(chosen)
        node = Gathered(projection, site.space, site.whole, self._plan_inside)
        node.origins = projection.origins()
        node.region = region
        node._shapes = [self._shapes[j] for j in own]
        return node

    @property
    def fits_blocks(self) -> bool:
        return False  # each block would have collectives of its own


def gathered(region: Any) -> Iterator[Gathered]:
    """Yields the nodes of a region, and of those inside, that gather."""
    return (node for node in region.walk() if isinstance(node, Gathered))


def _without_storage(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
