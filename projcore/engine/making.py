"""Plans of whole optimizers: the region in the space of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore.core.module import Module, Planner
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.core.state import State
from projcore.engine.commit import Store
from projcore.engine.compiler import Compiler
from projcore.engine.facts import Known, LiveSettings
from projcore.engine.flat import flatten
from projcore.engine.gather import Gather, Owners, gathered
from projcore.engine.inside import Inside
from projcore.engine.items import Items
from projcore.engine.keys import key_of
from projcore.engine.local import Local
from projcore.engine.names import SettingNames
from projcore.engine.nodes import Call, Node
from projcore.engine.plan import Builder, Rate, add_rate
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch


@dataclass
class Plan:
    """What a step does.

    Attributes:
        region: What runs on the parameters that take part.
        members: The places of these among all parameters.
        trees: The state that modules will keep for each parameter, as tensors without storage.
        reads: The settings on which the plan depends: of each the group, the key and the value.
        labels: For `Optimizer.describe`: what modules that choose said of their tensors.
        store: The state that its nodes work on.
        compiler: What compiles its runs of nodes; None if it runs in Python.
        parts: Regions that modules run by themselves, as they are planned when first run.
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

    @cached_property
    def gathers(self) -> bool:
        """Whether processes own parameters; then all must do the same at the same time."""
        return any(gathered(self.region))

    def block(self, places: Sequence[int]) -> Region:
        """Returns what runs on some of the parameters alone."""
        key = tuple(places)
        if key not in self._blocks:
            region = self.region.part(places)
            assert region is not None, "a module of scope 'all' was let through"
            if self.store is not None:
                region.bind(self.store.trees)
            self._blocks[key] = region
        return self._blocks[key]

    def bind(self, store: Store) -> None:
        """Has all that runs work on this state."""
        if self.store is not store:
            for region in (self.region, *self._blocks.values()):
                region.bind(store.trees)
            self.store = store

    def expected(self, count: int) -> list[dict[str, Any]]:
        """Returns the state that modules will keep for each of so many parameters, flat."""
        flat: list[dict[str, Any]] = [{} for _ in range(count)]
        for place, tree in zip(self.members, self.trees, strict=True):
            flat[place] = flatten(tree)
        return flat

    def holds(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the settings that it depends on are as they were."""
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

    Projections learn their maps on such tensors too, so if they reject the parameters, they do so
    here.

    Args:
        module: What is to run.
        names: Which key holds which setting.
        groups: The parameter groups.
        members: The places of the parameters that take part.
        passes: What may be rewritten.
        owners: Which process owns each sharded parameter.
        active: Which of the members have a gradient; None for all.
        building: Whether an optimizer is being built, so that a rule that holds for no tensor, or
            a projection that applies to none, is an error.
    """
    parameters = [p for group in groups for p in group["params"]]
    numbers = [i for i, group in enumerate(groups) for _ in group["params"]]
    called = parameter_names(groups)
    without_storage = {
        i: torch.empty_like(p, device="meta") for i, p in enumerate(parameters) if not is_lazy(p)
    }
    absent = sorted(without_storage.keys() - set(members))
    complete = len(without_storage) == len(parameters)
    known = Known(
        names,
        groups,
        called,
        [(called[i], without_storage[i], numbers[i]) for i in absent] if complete else None,
        owners,
    )
    trees: list[Entries] = [{} for _ in members]
    space = Space(
        template=[without_storage[i] for i in members],
        groups=[numbers[i] for i in members],
        sources=[(i,) for i in members],
        keys=[key_of(i, called[i]) for i in members],
        formats=[
            (parameters[i].device, getattr(parameters[i], "device_mesh", None)) for i in members
        ],
        state=State(trees),
        context=known,
        active=active,
    )
    builder = Builder(passes, building=building)

    def plan(planner: Planner, space: Space) -> None:
        module.plan(planner, space)
        if names.rate_is_factor:
            add_rate(builder.nodes, space)

    with torch.no_grad():
        region = builder.region(space, plan)
        region.remember(Sketch(region.space, LiveSettings(names, groups, found={})))
    reads = [
        (i, key, group[key]) for i, group in enumerate(groups) for key in known.reads & group.keys()
    ]
    return Plan(region, members, trees, reads, builder.labels)


class Row(NamedTuple):
    """One line of a plan: the module at a position, and the tensors that it works on.

    Attributes:
        path: The position.
        module: The module.
        shapes: The shapes of its tensors; of a projection, of those inside.
        sources: Of each tensor, the indices of the parameters that it is made from.
        routes: Where it sends each tensor, if it sends tensors to different modules.
    """

    path: str
    module: Module
    shapes: Sequence[tuple[int, ...]] = ()
    sources: Sequence[tuple[int, ...]] = ()
    routes: Sequence[str] = ()


def rows(plan: Plan, modules: Mapping[str, Module]) -> list[Row]:
    """Returns the lines of a plan, in the order of positions."""
    found: dict[str, Row] = {}
    spaces: dict[str, dict[int, Space]] = {}  # a module may run in several, as in a projection
    for node in plan.region.walk():
        if isinstance(node.module, (Items, Gather, Local, Rate)):
            continue
        path, space = node.site.space.path, node.site.space
        found[path] = Row(path, node.module)
        known = spaces.setdefault(path, {})
        if isinstance(node, Inside) and node.region is not None:
            known[id(node)] = node.region.space
            if node.beside is not None:
                known[id(node.beside)] = node.beside
        elif not isinstance(node, Inside) and not _unknown(node):
            known[id(space)] = space
    for path, several in spaces.items():
        every = [
            each
            for space in several.values()
            for each in zip(space.template, space.sources, strict=True)
        ]
        shapes = [tuple(tensor.shape) for tensor, _ in every]
        found[path] = found[path]._replace(shapes=shapes, sources=[each for _, each in every])
    for space, labels in plan.labels:
        shapes = [tuple(tensor.shape) for tensor in space.template]
        found[space.path] = Row(space.path, modules[space.path], shapes, space.sources, labels)
    order = {path: i for i, path in enumerate(modules)}
    return sorted(found.values(), key=lambda row: order[row.path])


def _unknown(node: Node) -> bool:
    """Whether a module keeps state, and what is known only after the first step."""
    nodes = node.site.state.nodes
    return isinstance(node, Call) and node.site.keeps and not all(nodes)


def parameter_names(groups: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Returns the name of each parameter of groups, None for those that were given without."""
    return [
        name for group in groups for name in group.get("param_names", [None] * len(group["params"]))
    ]


def all_parameters(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Returns the parameters of all groups."""
    return [p for group in groups for p in group["params"]]
