"""The planner: turns a tree of modules into regions of nodes, once, before there are values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from projcore.core.module import Module, Observer, Planner, Transform
from projcore.core.projection import INNER, ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.core.state import State
from projcore.engine.flat import flatten
from projcore.engine.gather import (
    Gather,
    Gathered,
    Visit,
    Weight,
    plan_visits,
    total_needs,
    weight_of,
)
from projcore.engine.inside import Inside
from projcore.engine.items import Items
from projcore.engine.local import Local, OnParts
from projcore.engine.nodes import Call, Node, Observe, Site, Step, has_factor
from projcore.engine.region import Region
from projcore.engine.shards import Shards, Transfer
from projcore.engine.sketch import Sketch
from projcore.engine.tree import runs_locally, takes_shards
from projcore.errors import ArgumentError, ContractError
from projcore.ops import is_sharded
from projcore.values import common, scalar

RATE = "lr"
PASSES = frozenset({"hoist", "fold", "fuse", "split"})

Planned = Callable[[Planner, Space], None]


class Builder(Planner):
    """Collects the nodes of a region, as the modules name them.

    Args:
        passes: What may be rewritten, some of `PASSES`.
        around: The projection that the region is inside of, if there is one that is linear.
        building: As of `make_plan`.
    """

    def __init__(
        self,
        passes: frozenset[str],
        around: ProjectionBase | None = None,
        building: bool = False,
    ) -> None:
        self.passes = passes
        self.building = building
        self.around = around
        self.nodes: list[Node] = []
        self.notes: list[tuple[State, str, Sequence[float]]] = []
        self.labels: list[tuple[Space, Sequence[str]]] = []
        self._size: int | None = None

    def region(self, space: Space, plan: Planned) -> Region:
        """Returns the region of what is planned for a space."""
        space = replace(space, places=range(len(space)))
        self._size = len(space)
        plan(self, space)
        self._check_order()
        return Region(space, self.nodes, self.notes, self.passes)

    def step(self, module: Module, space: Space, runs: Sequence[Planned] = ()) -> None:
        space = self._take_shards(module, space)
        if not len(space):
            return
        if isinstance(module, Transform):
            one_by_one = space.batch_dims and module.scope == "tensor"
            if one_by_one and not module.named("apply", batch_dims=0):
                self._by_item(module.plan, space)
            else:
                site = Site(module, space, self._is_whole(space))
                for group, members in site.parts():
                    self.nodes.append(Call(site, members, group))
        elif isinstance(module, Observer):
            self._observe(module, space)
        else:
            if type(module).step is Module.step:
                raise ContractError(
                    f"{type(module).__name__} was planned to run its step, which it does not "
                    "override. Override step, or plan its children instead."
                )
            inside = [
                Builder(self.passes, self.around, self.building).region(space, plan)
                for plan in runs
            ]
            self.nodes.append(Step(module, space, self._is_whole(space), inside))

    def _is_whole(self, space: Space) -> bool:
        return len(space) == self._size

    def _observe(self, module: Observer, space: Space) -> None:
        if self.around is not None:
            raise ArgumentError(
                f"{type(self.around).__name__} was given {module}, which looks at the parameters "
                "after the step. Inside it would see something else. Use it outside this "
                "projection."
            )
        site = Site(module, space, self._is_whole(space))
        for group, members in site.parts():
            self.nodes.append(Observe(site, members, group))

    def enter(self, projection: ProjectionBase, space: Space) -> None:
        if space.batch_dims and projection.scope == "tensor":
            self._by_item(projection.plan, space)
            return
        space = without_missing(projection, space)
        if self.building and len(space):
            check_applies(projection, space)
        passing = self._passing(projection, space)
        if not passing:
            self._enter(projection, space)
            return
        beside = space.select(passing)
        projected = [i for i in range(len(space)) if i not in set(passing)]
        self._enter(projection, space.select(projected), beside)
        projection.chain.plan(self, beside.child(INNER))

    def _enter(self, projection: ProjectionBase, space: Space, beside: Space | None = None) -> None:
        """Has modules run inside a projection, or outside where that is the same."""
        space = self._take_shards(projection, space, beside)
        if not len(space):
            return
        path = f"{space.path}/{INNER}"
        if projection.geometry != "layout" or not projection.project_update:
            self._inside(projection, space, INNER, path, projection.chain.plan, beside)
            return
        parts = segments(projection)
        if self.building and all(elementwise for elementwise, _ in parts):
            self._try_out(projection, space)
        for elementwise, names in parts:
            if elementwise and "hoist" in self.passes:
                for name in names:
                    child, inside = projection.chain.children[name], space.child(INNER).child(name)
                    if self.building and has_factor(child):
                        common(child, inside.settings())  # as it would find in the step
                    child.plan(self, inside)
            else:
                plan = _some(projection, names)
                self._inside(projection, space, INNER, path, plan)

    def _take_shards(self, module: Module, space: Space, beside: Space | None = None) -> Space:
        """Has a module run on sharded tensors, whole or by parts; returns those that are left."""
        here = runs_locally(module)
        if takes_shards(module) and not here:
            return space
        meshes: dict[Any, list[int]] = {}
        for i, tensor in enumerate(space.template):
            if is_sharded(tensor):
                meshes.setdefault(tensor.device_mesh, []).append(i)  # type: ignore[attr-defined]
        for mesh, places in meshes.items():
            some = space.select(places)
            if here:
                self._inside(Local(module), some, "", space.path, module.plan, None, OnParts)
                continue
            owners = space.context.owners
            transfer = Transfer(
                [Shards.of(tensor) for tensor in some.template],
                [tensor.dtype for tensor in some.template],
                owners.assign(some, mesh, partial(self._weigh, module, some)),
                owners.team(mesh),
            )
            self._visit(Visit(module, some), transfer, beside)
        if not meshes:
            return space
        sharded = {i for places in meshes.values() for i in places}
        return space.select([i for i in range(len(space)) if i not in sharded])

    def _visit(self, visit: Visit, transfer: Transfer, beside: Space | None) -> None:
        """Has owners run a module, together with what they run just before on the same tensors."""
        visits: tuple[Visit, ...] = (visit,)
        last = self.nodes[-1] if self.nodes else None
        same = isinstance(last, Gathered) and last.space.sources == visit.space.sources
        if isinstance(last, Gathered) and same and beside is None:
            visits, beside = (*last.visits, visit), last.beside
            self.nodes.pop()
        first = visits[0].space
        gather = Gather(total_needs(visits), transfer)
        self._inside(gather, first, "", first.path, partial(plan_visits, visits), beside, Gathered)
        node = self.nodes[-1]
        assert isinstance(node, Gathered)
        node.visits = visits

    def _weigh(self, module: Module, space: Space, chosen: Sequence[int]) -> list[Weight]:
        """Returns what an owner of each of some sharded tensors would keep for a module."""
        kinds = [
            (space.template[i].shape, space.template[i].dtype, space.groups[i]) for i in chosen
        ]
        first = dict(zip(reversed(kinds), reversed(chosen), strict=True))
        some = space.select(list(first.values()))
        full = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype, _ in first]
        state = some.state.over([{} for _ in some.state.trees])
        some = replace(some, template=full, formats=[None] * len(full), state=state)
        region = Builder(self.passes, self.around).region(some, module.plan)
        region.remember(Sketch(region.space))
        kept = (flatten(node).values() for node in state.nodes)
        weights = dict(zip(first, map(weight_of, full, kept), strict=True))
        return [weights[kind] for kind in kinds]

    def _try_out(self, projection: ProjectionBase, space: Space) -> None:
        """Has a projection reject its tensors although all modules inside may run outside."""
        space = replace(space, state=space.state.over([{} for _ in space.state.trees]))
        Inside(projection, space, self._is_whole(space), _unplanned).try_out()

    def _passing(self, projection: ProjectionBase, space: Space) -> list[int]:
        """Returns which tensors pass a projection and run outside of it, as they would inside."""
        modules = projection.chain.children.values()
        by_tensor = all(isinstance(each, Transform) and each.scope != "all" for each in modules)
        outside = projection.project_update and by_tensor and projection.geometry != "layout"
        if projection.scope == "all" or not outside:
            return []
        passing = [
            i
            for i, (tensor, values) in enumerate(zip(space.template, space.settings(), strict=True))
            if not projection.applies(tensor, values)
        ]
        return passing if "hoist" in self.passes and len(passing) < len(space) else []

    def _by_item(self, plan: Planned, space: Space) -> None:
        """Has a module that cannot run on batches run on each item by itself."""
        self._inside(Items(space), space, "items", space.path, plan)

    def _inside(
        self,
        projection: ProjectionBase,
        space: Space,
        name: str,
        path: str,
        plan: Planned,
        beside: Space | None = None,
        kind: type[Inside] = Inside,
    ) -> None:
        """Has modules run in the space of a projection; for `beside`, see `Inside`."""
        around = projection if projection.geometry == "linear" else self.around

        def plan_inside(node: Inside, tensors: Sequence[Tensor]) -> Region:
            trees = node.site.state.trees
            scratch: list[Entries] = [{} for _ in trees]
            inner = node.inner_space(tensors, name, path)
            inner = replace(inner, state=inner.state.over(scratch))
            building = self.building and kind is Inside  # another process may have what is missing
            builder = Builder(self.passes, around, building)
            region = builder.region(inner, plan)
            self.labels += builder.labels
            region.bind(trees)
            return region

        node = kind(projection, space, self._is_whole(space), plan_inside, beside)
        node.prepare()
        if node.owns and self.around is not None:
            raise ArgumentError(
                f"{type(self.around).__name__} was given {projection}, whose result must reach the "
                "parameters as it is. Use it outside this projection."
            )
        self.nodes.append(node)

    def note(self, space: Space, name: str, values: Sequence[float], labels: Any = ()) -> None:
        for node, value in zip(space.state.nodes, values, strict=True):
            node[name] = value
        self.notes.append((space.state, name, values))
        if labels:
            self.labels.append((space, labels))

    def _check_order(self) -> None:
        """Raises if another module follows one that must come last for its tensors."""
        for k, node in enumerate(self.nodes):
            for other in self.nodes[k + 1 :] if node.comes_last else ():
                if not _ends(other) and not set(node.where).isdisjoint(other.where):
                    where = "before" if _ends(node) else "inside"
                    raise ArgumentError(
                        f"{other.module} follows {node.module}, whose result must reach the "
                        f"parameters as it is. Put {other.module} {where} it."
                    )


def _ends(node: Node) -> bool:
    """Whether the module of a node itself, and not only one inside it, comes last."""
    return node.module.comes_last


def _unplanned(node: Inside, tensors: Sequence[Tensor]) -> Region:
    raise NotImplementedError("nothing runs inside")


def check_applies(projection: ProjectionBase, space: Space) -> None:
    """Raises if a projection applies to no tensor at all."""
    if any(map(projection.applies, space.template, space.settings())):
        return
    shapes = [tuple(tensor.shape) for tensor in space.template]
    raise ArgumentError(
        f"{projection} applies to none of its {len(shapes)} tensors, of shapes "
        f"{', '.join(map(str, shapes[:5]))}{', ...' if len(shapes) > 5 else ''}. "
        "Change its settings, or remove it."
    )


def without_missing(projection: ProjectionBase, space: Space) -> Space:
    """Returns a space without the tensors that have no gradient for a projection to learn from."""
    if space.active is None or projection.scope == "all" or not projection.learns:
        return space
    settings = space.settings()
    active = set(space.active)
    chosen = [
        i
        for i, tensor in enumerate(space.template)
        if i in active or not projection.applies(tensor, settings[i])
    ]
    return space.select(chosen)


def segments(projection: ProjectionBase) -> list[tuple[bool, list[str]]]:
    """Splits the modules inside into runs that do the same outside of a layout, or not.

    Those are elementwise, or multiply by a number that does not depend on the layout.
    """
    found: list[tuple[bool, list[str]]] = []
    for name, module in projection.chain.children.items():
        elementwise = module.total_scope == "element" or has_factor(module)
        if not found or found[-1][0] != elementwise:
            found.append((elementwise, []))
        found[-1][1].append(name)
    return found


def _some(projection: ProjectionBase, names: Sequence[str]) -> Planned:
    """Plans some of the modules inside."""

    def plan(planner: Planner, space: Space) -> None:
        for name in names:
            projection.chain.children[name].plan(planner, space.child(name))

    return plan


def add_rate(nodes: list[Node], space: Space) -> None:
    """Has the update multiplied by the ``lr`` of its group, as the parameters take it.

    That is before the modules that come last, and inside the projections that contain such modules.
    """
    left = set(range(len(space)))
    for node in nodes:
        if node.comes_last and not _ends(node):
            left.difference_update(node.where)
            for region in node.regions():
                add_rate(region.nodes, region.space)
    rated: list[Node] = []
    for node in nodes:
        if _ends(node):
            rated += _rates(space, left.intersection(node.where))
            left.difference_update(node.where)
        rated.append(node)
    nodes[:] = [*rated, *_rates(space, left)]


def _rates(space: Space, where: set[int]) -> list[Node]:
    """Returns what multiplies the update of some of the tensors of a space by their rates."""
    if not where:
        return []
    whole = len(where) == len(space)
    site = Site(Rate(), space if whole else space.select(sorted(where)), whole)
    return [Call(site, members, group, path="") for group, members in site.parts()]


class Rate(Transform):
    """Multiplies the update by the ``lr`` of its group, where no module has it as a setting."""

    scope = "element"

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(scalar(settings[0].get(RATE, 1.0)), 0.0)] * len(states)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, settings[0][RATE]))
