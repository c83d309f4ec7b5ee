"""The planner: turns a tree of modules into regions of nodes, before tensors have values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from projcore.core.module import Module, Observer, Planner, Transform
from projcore.core.objective import PlanMethod
from projcore.core.projection import INNER, ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Entries, State
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


class Builder(Planner):
    """Builds a region from the nodes that modules add.

    Args:
        passes: The passes that may rewrite the region, some of `PASSES`.
        around: The innermost linear projection that the region is inside of, or None.
        building: See `make_plan`.
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

    def region(self, space: Space, plan: PlanMethod) -> Region:
        """Returns the region of the nodes that `plan` adds for a space."""
        space = replace(space, region_indices=range(len(space)))
        self._size = len(space)
        plan(self, space)
        self._check_order()
        return Region(space, self.nodes, self.notes, self.passes)

    def add_step(self, module: Module, space: Space, runs: Sequence[PlanMethod] = ()) -> None:
        space = self._plan_sharded(module, space)
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
                f"{type(self.around).__name__} was given {module}, which reads the parameters "
                "after the step. It cannot read them inside. Use it outside this projection."
            )
        site = Site(module, space, self._is_whole(space))
        for group, members in site.parts():
            self.nodes.append(Observe(site, members, group))

    def add_projection(self, projection: ProjectionBase, space: Space) -> None:
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
        """Plans the modules inside a projection, and runs them outside where that is equal."""
        space = self._plan_sharded(projection, space, beside)
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
                        common(child, inside.settings())  # raises what would be raised in the step
                    child.plan(self, inside)
            else:
                plan = _plan_of(projection, names)
                self._inside(projection, space, INNER, path, plan)

    def _plan_sharded(self, module: Module, space: Space, beside: Space | None = None) -> Space:
        """Plans a module on sharded tensors, gathered or local; returns the space of the others."""
        local = runs_locally(module)
        if takes_shards(module) and not local:
            return space
        meshes: dict[Any, list[int]] = {}
        for i, tensor in enumerate(space.template):
            if is_sharded(tensor):
                meshes.setdefault(tensor.device_mesh, []).append(i)  # type: ignore[attr-defined]
        for mesh, indices in meshes.items():
            some = space.select(indices)
            if local:
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
        sharded = {i for indices in meshes.values() for i in indices}
        return space.select([i for i in range(len(space)) if i not in sharded])

    def _visit(self, visit: Visit, transfer: Transfer, beside: Space | None) -> None:
        """Has owners run a module, together with what they run just before on the same tensors."""
        visits: tuple[Visit, ...] = (visit,)
        last = self.nodes[-1] if self.nodes else None
        same = (
            isinstance(last, Gathered)
            and last.space.parameter_indices == visit.space.parameter_indices
        )
        if isinstance(last, Gathered) and same and beside is None:
            visits, beside = (*last.visits, visit), last.beside
            self.nodes.pop()
        first = visits[0].space
        gather = Gather(total_needs(visits), transfer)
        self._inside(gather, first, "", first.path, partial(plan_visits, visits), beside, Gathered)
        node = self.nodes[-1]
        assert isinstance(node, Gathered)
        node.visits = visits

    def _weigh(self, module: Module, space: Space, indices: Sequence[int]) -> list[Weight]:
        """Returns the weight of each of some sharded tensors for the process that owns it."""
        kinds = [
            (space.template[i].shape, space.template[i].dtype, space.groups[i]) for i in indices
        ]
        first = dict(zip(reversed(kinds), reversed(indices), strict=True))
        some = space.select(list(first.values()))
        full = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype, _ in first]
        state = some.state.over([{} for _ in some.state.trees])
        some = replace(some, template=full, devices=[None] * len(full), state=state)
        region = Builder(self.passes, self.around).region(some, module.plan)
        region.create_state(Sketch(region.space))
        entries = (flatten(node).values() for node in state.entries)
        weights = dict(zip(first, map(weight_of, full, entries), strict=True))
        return [weights[kind] for kind in kinds]

    def _try_out(self, projection: ProjectionBase, space: Space) -> None:
        """Raises if a projection rejects its tensors, though all modules inside run outside."""
        space = replace(space, state=space.state.over([{} for _ in space.state.trees]))
        Inside(projection, space, self._is_whole(space), _unplanned).try_out()

    def _passing(self, projection: ProjectionBase, space: Space) -> list[int]:
        """Returns the indices of unprojected tensors whose modules can run outside instead."""
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

    def _by_item(self, plan: PlanMethod, space: Space) -> None:
        """Plans a module that does not support batches on each item."""
        self._inside(Items(space), space, "items", space.path, plan)

    def _inside(
        self,
        projection: ProjectionBase,
        space: Space,
        name: str,
        path: str,
        plan: PlanMethod,
        beside: Space | None = None,
        kind: type[Inside] = Inside,
    ) -> None:
        """Adds a node that runs modules inside a projection; for `beside`, see `Inside`."""
        around = projection if projection.geometry == "linear" else self.around

        def plan_inside(node: Inside, tensors: Sequence[Tensor]) -> Region:
            trees = node.site.state.trees
            scratch: list[Entries] = [{} for _ in trees]
            inner = node.inner_space(tensors, name, path)
            inner = replace(inner, state=inner.state.over(scratch))
            building = self.building and kind is Inside  # the tensors may be in another process
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
                "parameters unchanged. Use it outside this projection."
            )
        self.nodes.append(node)

    def add_entry(self, space: Space, name: str, values: Sequence[float], labels: Any = ()) -> None:
        for node, value in zip(space.state.entries, values, strict=True):
            node[name] = value
        self.notes.append((space.state, name, values))
        if labels:
            self.labels.append((space, labels))

    def _check_order(self) -> None:
        """Raises if another module follows one that must come last for its tensors."""
        for k, node in enumerate(self.nodes):
            for other in self.nodes[k + 1 :] if node.comes_last else ():
                if not _comes_last(other) and not set(node.where).isdisjoint(other.where):
                    place = "before" if _comes_last(node) else "inside"
                    raise ArgumentError(
                        f"{other.module} follows {node.module}, whose result must reach the "
                        f"parameters unchanged. Put {other.module} {place} it."
                    )


def _comes_last(node: Node) -> bool:
    """Whether the module of a node itself, and not only one inside it, comes last."""
    return node.module.comes_last


def _unplanned(node: Inside, tensors: Sequence[Tensor]) -> Region:
    raise NotImplementedError("nothing runs inside")


def check_applies(projection: ProjectionBase, space: Space) -> None:
    """Raises if a projection applies to no tensor at all, nor to a parameter that is frozen."""
    if space.frozen is None or any(map(projection.applies, space.template, space.settings())):
        return
    for _, tensor, group in space.frozen:
        if projection.applies(tensor, space.context.settings(space.path, group)):
            return
    shapes = [tuple(tensor.shape) for tensor in space.template]
    raise ArgumentError(
        f"{projection} applies to none of its {len(shapes)} tensors, of shapes "
        f"{', '.join(map(str, shapes[:5]))}{', ...' if len(shapes) > 5 else ''}. "
        "Change its settings, or remove it."
    )


def without_missing(projection: ProjectionBase, space: Space) -> Space:
    """Returns a space without the tensors whose map would depend on a gradient that is missing."""
    if space.active is None or projection.scope == "all" or not projection.learns:
        return space
    settings = space.settings()
    active = set(space.active)
    indices = [
        i
        for i, tensor in enumerate(space.template)
        if i in active or not projection.applies(tensor, settings[i])
    ]
    return space.select(indices)


def segments(projection: ProjectionBase) -> list[tuple[bool, list[str]]]:
    """Splits the modules inside a layout into runs, by whether they are equal outside of it.

    These are elementwise, or multiply by a factor that does not depend on the layout.
    """
    found: list[tuple[bool, list[str]]] = []
    for name, module in projection.chain.children.items():
        elementwise = module.total_scope == "element" or has_factor(module)
        if not found or found[-1][0] != elementwise:
            found.append((elementwise, []))
        found[-1][1].append(name)
    return found


def _plan_of(projection: ProjectionBase, names: Sequence[str]) -> PlanMethod:
    """Returns a function that plans some of the modules inside."""

    def plan(planner: Planner, space: Space) -> None:
        for name in names:
            projection.chain.children[name].plan(planner, space.child(name))

    return plan


def add_rate(nodes: list[Node], space: Space) -> None:
    """Adds nodes that multiply the update by the ``lr`` of its group, at the end.

    They are before the modules that come last, and inside projections that contain such modules.
    """
    left = set(range(len(space)))
    for node in nodes:
        if node.comes_last and not _comes_last(node):
            left.difference_update(node.where)
            for region in node.regions():
                add_rate(region.nodes, region.space)
    rated: list[Node] = []
    for node in nodes:
        if _comes_last(node):
            rated += _rate_nodes(space, left.intersection(node.where))
            left.difference_update(node.where)
        rated.append(node)
    nodes[:] = [*rated, *_rate_nodes(space, left)]


def _rate_nodes(space: Space, indices: set[int]) -> list[Node]:
    """Returns nodes that multiply the update of some of the tensors of a space by their rates."""
    if not indices:
        return []
    whole = len(indices) == len(space)
    site = Site(Rate(), space if whole else space.select(sorted(indices)), whole)
    return [Call(site, members, group, path="") for group, members in site.parts()]


class Rate(Transform):
    """Multiplies the update by the ``lr`` of its group, if that is not a setting of a module."""

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
