"""Sharded parameters (`DTensor`) under modules that need them unsharded.

Each parameter has an owner, one of the processes, which gets its full update, runs the
modules, keeps their state, and hands the result out. So each element is sent to its owner and back,
in two collectives for all parameters together, whatever the modules are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore.core.module import Module, Need, Planner
from projcore.core.projection import Current, ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Entries
from projcore.engine.inside import Inside
from projcore.engine.nodes import Node
from projcore.engine.shards import Team, Transfer
from projcore.ops import as_part

Weight = tuple[int, int]  # bytes of state, and elements
NO_WEIGHT: Weight = 0, 0


class Owner(NamedTuple):
    """The process that owns a parameter.

    Attributes:
        ranks: The processes of the parameter's mesh.
        number: Its number among these.
        weight: What it keeps of it.
    """

    ranks: tuple[int, ...]
    number: int
    weight: Weight


class Owners:
    """Which process owns each parameter of an optimizer; it stays so as long as that lives.

    Each keeps about as many bytes of state as the others, and among parameters of equal state as
    many elements: the parameter of most state that has no owner goes to the process that has the
    least, and so on; then some are exchanged. That depends on modules, shapes and order alone, so
    all processes find the same.
    """

    def __init__(self) -> None:
        self._owners: dict[int, Owner] = {}
        self._teams: dict[Hashable, Team] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_owners": self._owners, "_teams": {}}  # groups are of this process

    def team(self, mesh: Any) -> Team:
        """Returns the processes of a mesh."""
        if mesh not in self._teams:
            self._teams[mesh] = Team(mesh)
        return self._teams[mesh]

    def assign(
        self, space: Space, mesh: Any, weigh: Callable[[Sequence[int]], Sequence[Weight]]
    ) -> list[int]:
        """Returns the owner of each tensor of a space, by its number in the team of the mesh.

        Args:
            space: The tensors.
            mesh: Their mesh.
            weigh: Returns the weight of some of the tensors, given by their indices; called for
                those that have no owner.
        """
        places = [place for (place,) in space.parameter_indices]
        new = [i for i, place in enumerate(places) if place not in self._owners]
        if new:
            ranks = tuple(self.team(mesh).ranks)
            loads = [NO_WEIGHT] * len(ranks)
            for owner in self._owners.values():
                if owner.ranks == ranks:
                    loads[owner.number] = _sum(loads[owner.number], owner.weight)
            weights = weigh(new)
            found = balance([space.template[i].shape for i in new], weights, loads)
            for i, number, weight in zip(new, found, weights, strict=True):
                self._owners[places[i]] = Owner(ranks, number, weight)
        return [self._owners[place].number for place in places]


def balance(
    shapes: Sequence[Sequence[int]], weights: Sequence[Weight], loads: list[Weight]
) -> list[int]:
    """Returns who gets each of some tensors: the heaviest goes to who has least, and so on.

    Equal shapes come one after the other, since what is kept of them is equal, too. At the end
    tensors are exchanged as long as whoever has most then has less.

    Args:
        shapes: Their shapes.
        weights: Their weights.
        loads: The weight that each has; it grows.

    Example:
        >>> balance([(2,), (3,), (5,)], [(0, 2), (0, 3), (0, 5)], [(0, 0), (0, 0)])
        [1, 1, 0]
    """
    owners = [0] * len(shapes)
    order = sorted(range(len(shapes)), key=lambda i: (*weights[i], *shapes[i]), reverse=True)
    for i in order:
        owners[i] = loads.index(min(loads))
        loads[owners[i]] = _sum(loads[owners[i]], weights[i])
    while _exchange(owners, weights, loads):
        pass
    return owners


def _exchange(owners: list[int], weights: Sequence[Weight], loads: list[Weight]) -> bool:
    """Has whoever has most give a tensor away, or for a lighter one; returns if that helps."""
    most = loads.index(max(loads))
    kept: list[dict[Weight, int | None]] = [{NO_WEIGHT: None} for _ in loads]
    for i, (owner, weight) in enumerate(zip(owners, weights, strict=True)):
        kept[owner][weight] = i
    best, chosen = loads[most], None
    alike = {(load, *each): k for k, (load, each) in enumerate(zip(loads, kept, strict=True))}
    for other in alike.values():
        for given, taken in itertools.product(kept[most], kept[other]):
            change = given[0] - taken[0], given[1] - taken[1]
            after = loads[most][0] - change[0], loads[most][1] - change[1]
            peak = max(after, _sum(loads[other], change))
            if other != most and peak < best:
                best, chosen = peak, (other, kept[most][given], kept[other][taken], after, change)
    if chosen is None:
        return False
    other, given_place, taken_place, loads[most], change = chosen
    loads[other] = _sum(loads[other], change)
    for place, owner in ((given_place, other), (taken_place, most)):
        if place is not None:
            owners[place] = owner
    return True


def weight_of(tensor: Tensor, entries: Iterable[Any]) -> Weight:
    """Returns the weight of a tensor of which a module keeps some entries."""
    return sum(each.nbytes for each in entries if isinstance(each, Tensor)), tensor.numel()


def _sum(one: Weight, other: Weight) -> Weight:
    return one[0] + other[0], one[1] + other[1]


class Gather(ProjectionBase):
    """Hands sharded tensors to their owners: inside there are the full ones of this process.

    What modules inside need beside the update comes with it.

    Args:
        needs: What they need.
        transfer: The way of the tensors.
    """

    geometry = "layout"
    traceable = False

    def __init__(self, needs: frozenset[Need], transfer: Transfer) -> None:
        self.defaults, self.children, self.project_update = {}, {}, True
        self.transfer = transfer
        self.needs = needs & {"params", "grads"}

    @property
    def sent(self) -> tuple[int, int]:
        """How many bytes this process sends in a step, to the owners and from them.

        Gradients that modules inside need, and that are not the update itself, come on top.
        """
        held, given = self.transfer.sent
        return (1 + ("params" in self.needs)) * held, given

    def part(self, chosen: Sequence[int]) -> Gather:
        """Returns the same for some of the tensors."""
        return Gather(self.needs, self.transfer.part(chosen))

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


class Visit(NamedTuple):
    """A module that owners run.

    Attributes:
        module: The module.
        space: The tensors, sharded.
    """

    module: Module
    space: Space


class Gathered(Inside):
    """Runs modules that need tensors unsharded, on those that this process owns.

    The state of a tensor is where it is without shards.

    Attributes:
        visits: The modules, one after the other, and what they run on: the same tensors.
    """

    projection: Gather
    visits: tuple[Visit, ...]

    @property
    def paths(self) -> list[str]:
        """The positions of the modules."""
        return [visit.space.path for visit in self.visits]

    @property
    def transfer(self) -> Transfer:
        """The way of the tensors."""
        return self.projection.transfer

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        chosen = [k for k, place in enumerate(self.where) if place in index]
        own = [j for j, k in enumerate(self.transfer.own) if k in set(chosen)]
        region = None if self.region is None else self.region.part(own, alone)
        if region is None:
            return None
        site = self.site.part(index)
        projection = self.projection.part(chosen)
        node = Gathered(projection, site.space, site.whole, self._plan_inside)
        node.visits = self.visits
        node.origins = projection.origins()
        node.region = region
        node._shapes = [self._shapes[j] for j in own]
        return node

    @property
    def fits_blocks(self) -> bool:
        return False  # each block would have collectives of its own


def plan_visits(visits: Sequence[Visit], planner: Planner, space: Space) -> None:
    """Plans what owners run, on the full tensors of this process."""
    for visit in visits:
        numbers = {source: i for i, source in enumerate(visit.space.parameter_indices)}
        state = visit.space.state.select([numbers[source] for source in space.parameter_indices])
        visit.module.plan(planner, replace(space, state=state.over(space.state.trees)))


def total_needs(visits: Sequence[Visit]) -> frozenset[Need]:
    """Returns what any of these modules needs."""
    return frozenset[Need]().union(*(visit.module.total_needs for visit in visits))


def gathered(region: Any) -> Iterator[Gathered]:
    """Yields the nodes of a region, and of those inside, that gather."""
    return (node for node in region.walk() if isinstance(node, Gathered))


def _without_storage(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
