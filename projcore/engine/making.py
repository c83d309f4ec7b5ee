"""Plans of optimizers: the region in the space of the parameters, and the state to expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore._pairs import values_of
from projcore.core.module import Module, Planner
from projcore.core.space import Space
from projcore.core.state import Entries, State
from projcore.engine.commit import Store
from projcore.engine.compiler import Compiler
from projcore.engine.facts import LiveSettings, PlanContext
from projcore.engine.flat import flatten
from projcore.engine.gather import Gather, Owners, gathered
from projcore.engine.inside import Inside
from projcore.engine.items import Items
from projcore.engine.local import Local
from projcore.engine.names import SettingNames
from projcore.engine.nodes import Call, Node
from projcore.engine.plan import Builder, Rate, add_rate
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch
from projcore.engine.tensor_ids import tensor_id_of

# How often a parameter is, on average, in regions of some parameters that a plan keeps.
KEPT = 8


@dataclass
class Plan:
    """The plan of a step of an optimizer.

    Attributes:
        region: The region of the parameters that take part.
        members: The indices of these among all parameters.
        trees: The state that modules will have for each parameter, as tensors without storage;
            only if all have a gradient.
        reads: The settings on which the plan depends: of each the group, the key and the value.
        labels: The labels that modules gave their tensors in `Planner.note`.
        store: The state that its nodes work on.
        compiler: The compiler of its runs of nodes; None if it runs in Python.
        parts: Regions that modules run by `Objective.run`; each is planned when it first runs.
    """

    region: Region
    members: Sequence[int]
    trees: list[Entries]
    reads: list[tuple[int, str, Any]]
    labels: list[tuple[Space, Sequence[str]]]
    parts: dict[Any, Region] = field(default_factory=dict)
    store: Store | None = None
    compiler: Compiler | None = None
    _blocks: dict[tuple[int, ...], Region] = field(default_factory=dict)
    _latest: dict[int, Region] = field(default_factory=dict)  # which has run on each parameter

    @cached_property
    def gathers(self) -> bool:
        """Whether processes own parameters, so that all must step at the same time."""
        return any(gathered(self.region))

    def whole(self) -> Region:
        """Returns the region of all parameters, ready to run."""
        if self._blocks:
            self._take_over(self.region, range(len(self.members)))
        return self.region

    def block(self, indices: Sequence[int], alone: bool = False) -> Region:
        """Returns the region of some of the parameters, ready to run; it is kept for later.

        See `Node.part` for the arguments.
        """
        key = tuple(indices)
        region = self._blocks.pop(key, None)
        if region is None:
            region = self.region.part(indices, alone)
            assert region is not None, "a module of scope 'all' was accepted"
            if self.store is not None:
                region.bind(self.store.trees)
        self._blocks[key] = region
        while len(self._blocks) > 1 and sum(map(len, self._blocks)) > KEPT * len(self.members):
            del self._blocks[next(iter(self._blocks))]  # not used for the longest time
        self._take_over(region, indices)
        return region

    def _take_over(self, region: Region, indices: Sequence[int]) -> None:
        """Binds a region again if another one has run on one of these parameters since.

        That one may have put their state together in another way, see `Writer`.
        """
        if self.store is not None and any(
            self._latest.get(i, region) is not region for i in indices
        ):
            region.bind(self.store.trees)
        self._latest.update(dict.fromkeys(indices, region))

    def bind(self, store: Store) -> None:
        """Binds all regions to this state."""
        if self.store is not store:
            for region in (self.region, *self._blocks.values()):
                region.bind(store.trees)
            self._latest.clear()
            self.store = store

    def expected(self, count: int) -> list[dict[str, Any]]:
        """Returns the state that modules will have for each of `count` parameters, flat."""
        flat: list[dict[str, Any]] = [{} for _ in range(count)]
        for i, tree in zip(self.members, self.trees, strict=True):
            flat[i] = flatten(tree)
        return flat

    def holds(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the settings that it depends on are unchanged."""
        return all(
            groups[i][key] is value or groups[i][key] == value for i, key, value in self.reads
        )


def make_plan(
    module: Module,
    names: SettingNames,
    groups: Sequence[Mapping[str, Any]],
    members: Sequence[int],
    passes: frozenset[str],
    owners: Owners,
    active: Sequence[int] | None = None,
    building: bool = False,
) -> Plan:
    """Plans a step, on tensors without storage.

    Projections compute their maps on such tensors, too, so that those that reject the parameters
    do so here.

    Args:
        module: The module to plan.
        names: The keys of the settings in groups.
        groups: The parameter groups.
        members: The indices of the parameters that take part.
        passes: The passes that may rewrite the plan.
        owners: Which process owns each sharded parameter.
        active: Which of the members have a gradient; None for all.
        building: Whether an optimizer is being constructed, so that a rule that matches no tensor,
            or a projection that applies to none, is an error.
    """
    parameters = [p for group in groups for p in group["params"]]
    group_indices = [i for i, group in enumerate(groups) for _ in group["params"]]
    named = parameter_names(groups)
    without_storage = {
        i: torch.empty_like(p, device="meta") for i, p in enumerate(parameters) if not is_lazy(p)
    }
    frozen = sorted(without_storage.keys() - set(members))
    complete = len(without_storage) == len(parameters)
    context = PlanContext(
        names,
        groups,
        named,
        [(named[i], without_storage[i], group_indices[i]) for i in frozen] if complete else None,
        owners,
    )
    trees: list[Entries] = [{} for _ in members]
    space = Space(
        template=[without_storage[i] for i in members],
        groups=[group_indices[i] for i in members],
        parameter_indices=[(i,) for i in members],
        tensor_ids=[tensor_id_of(i, named[i]) for i in members],
        devices=[
            (parameters[i].device, getattr(parameters[i], "device_mesh", None)) for i in members
        ],
        state=State(trees),
        context=context,
        active=active,
    )
    builder = Builder(passes, building=building)

    def plan(planner: Planner, space: Space) -> None:
        module.plan(planner, space)
        if names.rate_is_factor:
            add_rate(builder.nodes, space)

    with torch.no_grad():
        region = builder.region(space, plan)
        if active is None:
            region.create_state(Sketch(region.space, LiveSettings(names, groups, found={})))
    reads = [
        (i, key, group[key])
        for i, group in enumerate(groups)
        for key in context.reads & group.keys()
    ]
    return Plan(region, members, trees, reads, builder.labels)


class Row(NamedTuple):
    """One row of a table of a plan: the module at a position, and its tensors.

    Attributes:
        path: The position.
        module: The module.
        shapes: The shapes of its tensors; for a projection, of those inside.
        parameter_indices: For each tensor, the indices of the parameters that it is made from.
        routes: The child that processes each tensor, if the module routes them to different ones.
    """

    path: str
    module: Module
    shapes: Sequence[tuple[int, ...]] = ()
    parameter_indices: Sequence[tuple[int, ...]] = ()
    routes: Sequence[str] = ()


def rows(plan: Plan, modules: Mapping[str, Module]) -> list[Row]:
    """Returns the rows of a plan, in the order of positions."""
    found: dict[str, Row] = {}
    spaces: dict[str, dict[int, Space]] = {}  # one position may have several, in a projection
    for node in plan.region.walk():
        if isinstance(node.module, (Items, Gather, Local, Rate)):
            continue
        path, space = node.site.space.path, node.site.space
        found[path] = Row(path, node.module)
        several = spaces.setdefault(path, {})
        if isinstance(node, Inside) and node.region is not None:
            several[id(node)] = node.region.space
            if node.beside is not None:
                several[id(node.beside)] = node.beside
        elif not isinstance(node, Inside) and not _is_unknown(node):
            several[id(space)] = space
    for path, several in spaces.items():
        every = [
            each
            for space in several.values()
            for each in zip(space.template, space.parameter_indices, strict=True)
        ]
        shapes = [tuple(tensor.shape) for tensor, _ in every]
        found[path] = found[path]._replace(
            shapes=shapes, parameter_indices=[each for _, each in every]
        )
    for space, labels in plan.labels:
        shapes = [tuple(tensor.shape) for tensor in space.template]
        found[space.path] = Row(
            space.path, modules[space.path], shapes, space.parameter_indices, labels
        )
    order = {path: i for i, path in enumerate(modules)}
    return sorted(found.values(), key=lambda row: order[row.path])


def _is_unknown(node: Node) -> bool:
    """Whether a module has state that is known only after the first step."""
    nodes = node.site.state.entries
    return isinstance(node, Call) and node.site.keeps and not all(nodes)


def parameter_names(groups: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Returns the name of each parameter of groups, or None."""
    return [name for group in groups for name in values_of(group, "param_names", None)]


def all_parameters(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Returns the parameters of all groups."""
    return [p for group in groups for p in group["params"]]
