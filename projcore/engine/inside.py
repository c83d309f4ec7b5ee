"""The node of a projection: tensors enter its space, a region runs there, and the update leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from projcore._checks import check_result
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.crossing import Crossing, ProjectedObjective, with_gradient
from projcore.engine.ending import Ending
from projcore.engine.keys import keys_inside
from projcore.engine.nodes import Call, Frame, Node, Site, why_untraceable
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch
from projcore.engine.transport import forget
from projcore.errors import ProjcoreError
from projcore.ops import local

Shapes = list[tuple[torch.Size, torch.dtype]]


class Inside(Node):
    """Runs a region in the space of a projection.

    Args:
        projection: The projection.
        space: The tensors.
        whole: Whether these are all tensors of the region.
        plan_inside: Plans what runs inside, on tensors of the shapes there.
        beside: Tensors that pass the projection, and run outside of it.

    Attributes:
        beside: As given.
        applied: The tensors that are projected, by their indices in `space`.
        passing: The others, which enter as they are.
        origins: Of each tensor inside, the tensors outside that it is made from.
        region: What runs inside; None as long as the shapes there are not known, because they
            depend on values.
    """

    def __init__(
        self,
        projection: ProjectionBase,
        space: Space,
        whole: bool,
        plan_inside: Callable[[Inside, Sequence[Tensor]], Region],
        beside: Space | None = None,
    ) -> None:
        self.module = projection
        self.projection = projection
        self.site = Site(projection, space, whole)
        self.space = space
        self.where = space.places
        self._plan_inside = plan_inside
        self.beside = beside
        settings = space.settings()
        self.applied = [
            i
            for i, (tensor, values) in enumerate(zip(space.template, settings, strict=True))
            if projection.applies(tensor, values)
        ]
        applied = set(self.applied)
        self.passing = [i for i in range(len(space)) if i not in applied]
        self.origins: list[list[int]] = []
        self.region: Region | None = None
        self._shapes: Shapes = []
        self._writes_through: bool | None = None
        self._apart: bool | None = None
        self._writer: Callable[..., list[Write]] | str | None = None
        hooks = ("init", "refresh", "receive", "combine", "targets", "writer")
        self._keeps = any(map(projection.overrides, hooks))
        self._owns = False
        self._moves = False  # whether tensors inside are on another device, as a step has seen
        self._lent: Sequence[Sequence[str]] = ()  # entries that are there for a trace

    @property
    def batch_dims(self) -> int:
        """How many leading dimensions of each tensor inside index independent tensors."""
        if self.projection.scope != "all":
            return self.space.batch_dims
        return self.projection.batch_dims if self.applied else 0

    def inner_space(self, template: Sequence[Tensor], name: str, path: str) -> Space:
        """Returns the space inside, given tensors that have the shapes there."""
        outer, origins = self.space, self.origins
        return Space(
            template=[torch.empty_like(tensor, device="meta") for tensor in template],
            groups=[_merged(outer.groups, origin) for origin in origins],
            sources=[
                tuple(sorted({source for i in origin for source in outer.sources[i]}))
                for origin in origins
            ],
            keys=keys_inside(outer.keys, origins),
            formats=[outer.formats[origin[0]] for origin in origins],
            state=self.site.state.inside(name, origins, path),
            context=outer.context,
            batch_dims=self.batch_dims,
            active=_active(outer.active, origins),
        )

    def plan(self, tensors: Sequence[Tensor]) -> None:
        """Plans what runs inside, on tensors of these shapes."""
        self.region = self._plan_inside(self, tensors)
        self._shapes = _shapes(tensors)
        self._writes_through = self._apart = None

    def prepare(self) -> None:
        """Plans what runs inside, if that can be known before there are values."""
        projected = self.try_out()
        if projected is not None:
            self.plan(projected)

    def try_out(self) -> list[Tensor] | None:
        """Has the projection learn and project tensors without storage, which it may reject.

        Returns:
            The tensors inside; None if they depend on values.
        """
        template = list(self.space.template)
        crossing = Crossing(self, Sketch(self.space))
        self._owns = self.projection.overrides("targets")
        try:
            crossing.refresh(template)
            self._owns = crossing.targets(template) is not None
            return crossing.down(template, "update")
        except ProjcoreError:
            raise
        except (NotImplementedError, RuntimeError):
            return None

    def part(self, index: Mapping[int, int]) -> Node | None:
        projection = self.projection
        several = projection.scope == "all"
        if several and (self.region is None or projection.total_scope == "all"):
            return None
        chosen = [k for k, place in enumerate(self.where) if place in index]
        numbers = {k: i for i, k in enumerate(chosen)}
        origins = self.origins if several else [[k] for k in range(len(self.where))]
        inside = [j for j, origin in enumerate(origins) if numbers.keys() >= set(origin)]
        region = None if self.region is None else self.region.part(inside)
        if region is None and (self.region is not None or projection.total_scope == "all"):
            return None
        site = self.site.part(index)
        node = Inside(projection, site.space, site.whole, self._plan_inside)
        node.origins = [[numbers[k] for k in origins[j]] for j in inside]
        node.region = region
        node._shapes = [self._shapes[j] for j in inside] if region is not None else []
        node._owns = self._owns
        return node

    @property
    def fits_blocks(self) -> bool:
        # Linear projections and parts take matrices of one shape together, and what goes to
        # another device and back does so with one wait.
        together = self.projection.geometry == "linear" or self.projection.scope == "all"
        return not (together or self._moves) and super().fits_blocks

    def bind(self, trees: Sequence[Entries]) -> None:
        if self.beside is not None:
            for node in self.beside.state.over(trees).nodes:
                forget(node)
        super().bind(trees)

    @property
    def untraceable(self) -> str:
        if self.region is None:
            return "shapes inside depend on values"
        own = why_untraceable(self.projection)
        if own:
            return own
        parted = any(node.untraceable or node.begins for node in self.region.nodes)
        return "not all that it runs inside is traced" if parted else ""

    @property
    def begins(self) -> bool:
        return self.projection.overrides("refresh") or self.projection.overrides("receive")

    def begin(self, frame: Frame) -> None:
        if self.site.ready and not self.begins:
            return
        crossing, update = self._learn(frame)
        if self.projection.overrides("materialize"):
            self._lent = crossing.materialize(update)
        for i, tensor in zip(self.where, update, strict=True):
            frame.update[i] = tensor

    def finish(self, frame: Frame) -> None:
        crossing = Crossing(self, self.site.select(frame.objective))
        self._cross(frame, crossing, [frame.update[i] for i in self.where])
        for state, names in zip(crossing.states, self._lent, strict=False):
            for name in names:
                del state[name]

    @property
    def is_settled(self) -> bool:
        region = self.region
        if region is None or (self.projection.overrides("init") and not self.site.ready):
            return False
        return all(node.is_settled for node in region.nodes)

    @property
    def owns(self) -> bool:
        return self._owns

    def writer(self, targets: list[Tensor]) -> Callable[..., list[Write]] | str:
        """Returns what writes parameters; asked for once."""
        if self._writer is None:
            self._writer = self.projection.writer([targets[i] for i in self.applied])
        return self._writer

    @property
    def writes_directly(self) -> bool:
        return bool(self._writes_through) or callable(self._writer)

    @property
    def repeatable(self) -> bool:
        region = self.region
        if region is None or region.ending.nodes or region.ending.blocks:
            return False
        if not self.owns and not self._apart:
            return False
        return not region.ending.rest and all(
            node.repeatable for node in (*region.ending.folded, *region.ending.writers)
        )

    @property
    def comes_last(self) -> bool:
        return self.owns or self.projection.comes_last or super().comes_last

    def regions(self) -> Iterator[Region]:
        if self.region is not None:
            yield self.region

    def sides(
        self, old: Objective, new: Objective, places: Sequence[int]
    ) -> tuple[Crossing, Crossing, list[int]]:
        """Returns the ways in from two spaces outside, of the tensors at some places there.

        With it come the indices of these among the places.
        """
        index = {place: k for k, place in enumerate(places)}
        chosen = [i for i, place in enumerate(self.space.places) if place in index]
        where = [index[self.space.places[i]] for i in chosen]
        selected = None if len(chosen) == len(self.space) else chosen
        before = Crossing(self, old.select(where), selected)
        return before, Crossing(self, new.select(where), selected), where

    def remember(self, objective: Objective) -> None:
        crossing = Crossing(self, self.site.select(objective))
        if self.region is None or (self.projection.learns and not crossing.is_meta):
            return  # what is inside is made of gradients
        template: Sequence[Tensor] = self.region.space.template
        if crossing.is_meta:
            crossing.refresh(list(crossing.objective.template))  # what it keeps for its map
        else:
            template = crossing.down(crossing.objective.template, "update")
        self.region.remember(ProjectedObjective(crossing, list(template), self.region.space))

    def run(self, frame: Frame) -> None:
        self._cross(frame, *self._learn(frame))

    def _learn(self, frame: Frame) -> tuple[Crossing, list[Tensor]]:
        """Receives the update, and has the projection learn its map, by which it then crosses."""
        objective = self.site.select(frame.objective)
        objective.context.changed |= self._keeps
        crossing = Crossing(self, objective)
        self.site.ready = True
        update = crossing.receive([frame.update[i] for i in self.where])
        crossing.refresh(update)
        return crossing, update

    def _cross(self, frame: Frame, crossing: Crossing, update: list[Tensor]) -> None:
        """Runs what is inside."""
        inner, projected = self._enter(crossing, update)
        result = self._region(projected).run(projected, inner, frame.whole)
        if not self.projection.overrides("combine"):  # nobody reads what was projected any more
            del inner
            projected = result
        done = crossing.combine(update, projected, result)
        check_result(self.module, update, done)
        for i, tensor in zip(self.where, done, strict=True):
            frame.update[i] = tensor

    def _enter(
        self, crossing: Crossing, update: list[Tensor]
    ) -> tuple[ProjectedObjective, list[Tensor]]:
        """Takes the update in: returns it as it is inside, with the facts there."""
        if self.projection.project_update:
            projected = crossing.down(update, "update")
        else:
            projected = crossing.down(crossing.objective.grads, "grads")
        self._moves = any(x.device != y.device for x, y in zip(projected[:1], update, strict=False))
        region = self._region(projected)
        return ProjectedObjective(crossing, projected, region.space), projected

    def _region(self, projected: list[Tensor]) -> Region:
        """Returns what runs inside; planned again if shapes there are not as planned."""
        if self.region is None or _shapes(projected) != self._shapes:
            self.plan(projected)
        assert self.region is not None
        return self.region

    def writes(
        self, frame: Frame, targets: Sequence[Tensor], blends: Sequence[Blend]
    ) -> list[Write | Later]:
        some, how = [targets[i] for i in self.where], [blends[i] for i in self.where]
        crossing, update = self._learn(frame)
        inner, projected = self._enter(crossing, update)
        region = self._region(projected)
        through = self.targets_inside(crossing, some)
        if through is not None:
            made = region.writes(Frame(list(projected), inner), through, how)
            return [*made, *crossing.copies(some, through)]
        if self._apart is not False:
            zeros = [torch.empty_like(tensor) for tensor in projected]
            if self.writes_apart(zeros):
                return self._write_apart(Frame(list(projected), inner), crossing, some, how, zeros)
        result = region.run(list(projected), inner)
        writer = self.writer(some)
        if isinstance(writer, str):
            done = crossing.combine(update, projected, result)
            check_result(self.module, update, done)
            return [*blended(some, done, how, self._alike(range(len(some))))]
        return [
            *blended(some, result, how, self._alike(self.passing)),
            *crossing.writes(writer, some, how, update, projected, result),
        ]

    def _alike(self, indices: Sequence[int]) -> list[list[int]]:
        """Returns which of some tensors have a gradient, in lists that torch takes together."""
        return alike(self.space, with_gradient(indices, self.space.active))

    def writes_apart(self, inside: list[Tensor]) -> bool:
        """Whether modules inside write zeros, and the parameters take what has become of these.

        So kernels that write parameters themselves are used in a cast, too. They do to zeros what
        they would do to the parameters, as long as they do not read them. Asked for once.
        """
        if self._apart is None:
            self._apart = self._can_write_apart and all(
                isinstance(node, Call)
                and not isinstance(node.writer([inside[i] for i in node.where]), str)
                for node in self._ending.writers
            )
        return self._apart

    @property
    def _can_write_apart(self) -> bool:
        projection, ending = self.projection, self._ending
        if projection.geometry == "linear" or "params" in projection.chain.total_needs:
            return False
        if projection.overrides("combine") and not projection.overrides("targets"):
            return False
        return bool(ending.writers) and not ending.rest and not ending.observers

    @property
    def _ending(self) -> Ending:
        assert self.region is not None
        return self.region.ending

    def _write_apart(
        self,
        frame: Frame,
        crossing: Crossing,
        targets: list[Tensor],
        blends: list[Blend],
        zeros: list[Tensor],
    ) -> list[Write | Later]:
        assert self.region is not None
        torch._foreach_zero_(zeros)
        made = self.region.writes(frame, zeros, [Blend(blend.scale) for blend in blends])
        takes = [Blend(-1.0, blend.decay) for blend in blends]
        together = self._alike(range(len(targets)))

        def take() -> list[Write]:
            return blended(targets, crossing.up(zeros, "update"), takes, together)

        return [*made, take]

    @property
    def can_write(self) -> bool:
        projection = self.projection
        if projection.scope == "all" or self.site.space.batch_dims:
            return False
        views = projection.geometry != "linear" and not projection.overrides("combine")
        return views or projection.overrides("targets") or projection.overrides("writer")

    def targets_inside(self, crossing: Crossing, targets: list[Tensor]) -> list[Tensor] | None:
        """Returns tensors inside that are written in place of the parameters, if there are such."""
        if self._writes_through is False:
            return None
        own = crossing.targets(targets)
        if own is None and self.projection.geometry != "linear":
            views = crossing.down(targets, "params")
            # A `combine` beside `targets` is for where the step is not written; see there.
            combines = self.projection.overrides("combine")
            if (self.projection.overrides("targets") or not combines) and _share(views, targets):
                own = views
        self._writes_through = own is not None
        return own


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _merged(groups: Sequence[Any], origin: Sequence[int]) -> Any:
    """The group of a tensor made from several others: theirs, if they share it, else all."""
    if len(origin) == 1:
        return groups[origin[0]]
    several = (groups[i] if isinstance(groups[i], tuple) else (groups[i],) for i in origin)
    return tuple(dict.fromkeys(chain.from_iterable(several)))


def _active(active: Sequence[int] | None, origins: Sequence[Sequence[int]]) -> list[int] | None:
    """The tensors inside that are made from one that has a gradient; None for all."""
    if active is None:
        return None
    chosen = set(active)
    found = [j for j, origin in enumerate(origins) if chosen.intersection(origin)]
    return None if len(found) == len(origins) else found


def _share(views: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Whether tensors inside are views of those outside, element by element."""
    return all(
        view.nbytes == target.nbytes
        and view.untyped_storage()._cdata == target.untyped_storage()._cdata
        for view, target in zip(map(local, views), map(local, targets), strict=True)
    )
