"""The node of a projection: projects the update, runs a region, and unprojects the result."""

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
from projcore.core.state import Entries
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.crossing import Crossing, ProjectedObjective, with_gradient
from projcore.engine.ending import Ending
from projcore.engine.nodes import Call, Frame, Node, Site, why_untraceable
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch
from projcore.engine.tensor_ids import tensor_ids_inside
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
        plan_inside: Plans the region inside, given tensors with the shapes there.
        beside: Tensors that are not projected, and whose modules run outside.

    Attributes:
        beside: See the argument.
        applied: The indices in `space` of the tensors that are projected.
        passing: The indices of the others, which enter unchanged.
        origins: For each inner tensor, the indices of the outer tensors that it is made from.
        region: The region inside; None while the shapes there are unknown, because they depend on
            values.
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
        self.where = space.region_indices
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
        # Whether what follows `_learn` may run, and run again, while parameters are written.
        self._waits = False
        self._writer: Callable[..., list[Write]] | str | None = None
        hooks = ("init", "refresh", "adjust_update", "combine", "targets", "writer")
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
            parameter_indices=[
                tuple(sorted({source for i in origin for source in outer.parameter_indices[i]}))
                for origin in origins
            ],
            tensor_ids=tensor_ids_inside(outer.tensor_ids, origins),
            devices=[outer.devices[origin[0]] for origin in origins],
            state=self.site.state.inside(name, origins, path),
            context=outer.context,
            batch_dims=self.batch_dims,
            active=_active(outer.active, origins),
        )

    def plan(self, tensors: Sequence[Tensor]) -> None:
        """Plans the region inside, for tensors of these shapes."""
        self.region = self._plan_inside(self, tensors)
        self._shapes = _shapes(tensors)
        self._writes_through = self._apart = None
        self._waits = False

    def prepare(self) -> None:
        """Plans the region inside, if the shapes there are known before tensors have values."""
        projected = self.try_out()
        if projected is not None:
            self.plan(projected)

    def try_out(self) -> list[Tensor] | None:
        """Runs the projection on tensors without storage, which it may reject.

        Returns:
            The inner tensors; None if their shapes depend on values.
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

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        projection = self.projection
        several = projection.scope == "all"
        if several and (self.region is None or projection.total_scope == "all"):
            return None
        chosen = [k for k, place in enumerate(self.where) if place in index]
        numbers = {k: i for i, k in enumerate(chosen)}
        origins = self.origins if several else [[k] for k in range(len(self.where))]
        inside = [j for j, origin in enumerate(origins) if numbers.keys() >= set(origin)]
        region = None if self.region is None else self.region.part(inside, alone)
        if region is None and (self.region is not None or projection.total_scope == "all"):
            return None
        site = self.site.part(index)
        node = Inside(projection, site.space, site.whole, self._plan_inside)
        node.origins = [[numbers[k] for k in origins[j]] for j in inside]
        node.region = region
        node._shapes = [self._shapes[j] for j in inside] if region is not None else []
        node._owns = self._owns
        node._apart, node._waits = self._apart, self._waits
        return node

    @property
    def fits_blocks(self) -> bool:
        # Linear projections and parts take matrices of one shape together, and what goes to another
        # device and back does so with one wait.
        linear = self.projection.geometry == "linear" and not self._apart
        together = linear or self.projection.scope == "all" or self._moves
        return not together and super().fits_blocks

    def bind(self, trees: Sequence[Entries]) -> None:
        if self.beside is not None:
            for node in self.beside.state.over(trees).entries:
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
        return self.projection.overrides("refresh") or self.projection.overrides("adjust_update")

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
        once = self.projection.learns or self.projection.overrides("adjust_update")
        return self._repeats and not once

    @property
    def _repeats(self) -> bool:
        """Whether what is inside may be done again until the result has run."""
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
        """Returns its crossings from an old and a new outer space, of some tensors of the region.

        The third result are the positions of these in `places`.
        """
        index = {place: k for k, place in enumerate(places)}
        chosen = [i for i, place in enumerate(self.space.region_indices) if place in index]
        where = [index[self.space.region_indices[i]] for i in chosen]
        selected = None if len(chosen) == len(self.space) else chosen
        before = Crossing(self, old.select(where), selected)
        return before, Crossing(self, new.select(where), selected), where

    def create_state(self, objective: Objective) -> None:
        crossing = Crossing(self, self.site.select(objective))
        if self.region is None or (self.projection.learns and not crossing.is_meta):
            return  # the inner tensors depend on gradients
        template: Sequence[Tensor] = self.region.space.template
        if crossing.is_meta:
            crossing.refresh(list(crossing.objective.template))  # creates the state of its map
        else:
            template = crossing.down(crossing.objective.template, "update")
        self.region.create_state(ProjectedObjective(crossing, list(template), self.region.space))

    def run(self, frame: Frame) -> None:
        self._cross(frame, *self._learn(frame))

    def _learn(self, frame: Frame) -> tuple[Crossing, list[Tensor]]:
        """Receives the update and refreshes the map; returns the crossing and the update."""
        objective = self.site.select(frame.objective)
        objective.context.changed |= self._keeps
        crossing = Crossing(self, objective)
        self.site.ready = True
        update = crossing.adjust_update([frame.update[i] for i in self.where])
        crossing.refresh(update)
        return crossing, update

    def _cross(self, frame: Frame, crossing: Crossing, update: list[Tensor]) -> None:
        """Runs the region inside, and unprojects its result into the update."""
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
        """Returns the facts inside, and the projected update."""
        if self.projection.project_update:
            projected = crossing.down(update, "update")
        else:
            projected = crossing.down(crossing.objective.grads, "grads")
        self._moves = any(x.device != y.device for x, y in zip(projected[:1], update, strict=False))
        region = self._region(projected)
        return ProjectedObjective(crossing, projected, region.space), projected

    def _region(self, projected: list[Tensor]) -> Region:
        """Returns the region inside, planned again if the shapes there have changed."""
        if self.region is None or _shapes(projected) != self._shapes:
            self.plan(projected)
        assert self.region is not None
        return self.region

    def writes(
        self, frame: Frame, targets: Sequence[Tensor], blends: Sequence[Blend]
    ) -> list[Write | Later]:
        some, how = [targets[i] for i in self.where], [blends[i] for i in self.where]
        crossing, update = self._learn(frame)
        if self._waits:
            return [lambda: self._write_apart(crossing, *self._enter(crossing, update), some, how)]
        inner, projected = self._enter(crossing, update)
        region = self._region(projected)
        through = self.targets_inside(crossing, some)
        if through is not None:
            made = region.writes(Frame(list(projected), inner), through, how)
            return [*made, *crossing.copies(some, through)]
        if self.writes_apart(projected):
            return self._write_apart(crossing, inner, projected, some, how)
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
        """Returns the indices that have a gradient, in groups that torch takes in one list."""
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
        if "params" in projection.chain.total_needs or projection.overrides("writer"):
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
        crossing: Crossing,
        inner: ProjectedObjective,
        projected: list[Tensor],
        targets: list[Tensor],
        blends: list[Blend],
    ) -> list[Write | Later]:
        zeros = [torch.empty_like(tensor) for tensor in projected]
        torch._foreach_zero_(zeros)
        frame = Frame(list(projected), inner)
        made = self._region(projected).writes(frame, zeros, [Blend(each.scale) for each in blends])
        self._waits = self._repeats
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
        return not projection.overrides("combine") or any(
            map(projection.overrides, ("targets", "writer"))
        )

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
    """Returns the group of a tensor that is made from others: a tuple if it has several."""
    if len(origin) == 1:
        return groups[origin[0]]
    several = (groups[i] if isinstance(groups[i], tuple) else (groups[i],) for i in origin)
    return tuple(dict.fromkeys(chain.from_iterable(several)))


def _active(active: Sequence[int] | None, origins: Sequence[Sequence[int]]) -> list[int] | None:
    """Returns the indices of inner tensors made from one with a gradient; None for all."""
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
