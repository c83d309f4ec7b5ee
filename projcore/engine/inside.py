"""The node of a projection: tensors enter its space, a region runs there, and the update leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from projcore._checks import check_result
from projcore.core.objective import Evaluation, Objective
from projcore.core.projection import Current, ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.ending import Ending
from projcore.engine.fetch import facts
from projcore.engine.keys import keys_inside
from projcore.engine.nodes import Call, Frame, Node, Site, why_untraceable
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch
from projcore.engine.transport import (
    change_map,
    clear_inside,
    forget,
    has_inside,
    is_wide,
    own_entries,
)
from projcore.errors import ArgumentError, ContractError, ProjcoreError

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

    def check_applies(self) -> None:
        """Raises if the projection applies to no tensor at all."""
        if not self.applied:
            shapes = [tuple(tensor.shape) for tensor in self.space.template]
            raise ArgumentError(
                f"{self.projection} applies to none of its {len(shapes)} tensors, of shapes "
                f"{', '.join(map(str, shapes[:5]))}{', ...' if len(shapes) > 5 else ''}. "
                "Change its settings, or remove it."
            )

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
            sources=[_merged_sources(outer.sources, origin) for origin in origins],
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
        if projection.scope == "all":
            return None
        chosen = [k for k, place in enumerate(self.where) if place in index]
        region = None if self.region is None else self.region.part(chosen)
        if region is None and (self.region is not None or projection.total_scope == "all"):
            return None
        site = self.site.part(index)
        node = Inside(projection, site.space, site.whole, self._plan_inside)
        node.origins = [[k] for k in range(len(chosen))]
        node.region = region
        node._shapes = [self._shapes[k] for k in chosen] if region is not None else []
        node._owns = self._owns
        return node

    @property
    def fits_blocks(self) -> bool:
        # Linear projections take matrices of one shape together, and what goes to another device
        # and back does so with one wait.
        together = self.projection.geometry == "linear" or self._moves
        return not together and super().fits_blocks

    def bind(self, trees: Sequence[Entries]) -> None:
        self.site.bind(trees)
        if self.beside is not None:
            for node in self.beside.state.over(trees).nodes:
                forget(node)
        if self.region is not None:
            self.region.bind(trees)

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
        return self.owns or super().comes_last

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
        return alike(self.space, _chosen(indices, self.space.active))

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


class Crossing:
    """One step's way through a projection: by which map tensors enter and leave."""

    def __init__(self, node: Inside, objective: Objective, selected: Sequence[int] | None = None):
        self.node = node
        self.projection = node.projection
        self.objective = objective
        state = node.site.state
        self.applied, self.passing = node.applied, node.passing
        self.selected = selected
        if selected is not None:
            state, applied = state.select(selected), set(node.applied)
            self.applied = [k for k, i in enumerate(selected) if i in applied]
            self.passing = [k for k, i in enumerate(selected) if i not in applied]
        self.state = state
        settings = objective.settings(state.path)
        self.states = [state.nodes[i] for i in self.applied]
        self.settings: list[Settings] = [settings[i] for i in self.applied]
        self.scratch: dict[str, Any] = {}
        if not torch.compiler.is_compiling():  # then all is there: see `Inside.is_settled`
            self._begin()

    @property
    def count(self) -> int:
        return len(self.objective.template)

    @property
    def places_inside(self) -> Sequence[int]:
        """The places of the tensors inside, in the region there."""
        if self.selected is not None and self.projection.scope != "all":
            return self.selected
        return range(len(self.node.origins))

    def select(self, indices: Sequence[int]) -> Crossing:
        """Returns the way of some of the tensors."""
        return Crossing(self.node, self.objective.select(indices), indices)

    def inside_objective(self, template: list[Tensor], space: Space) -> Objective:
        """Returns the facts inside, where tensors are as the template."""
        return ProjectedObjective(self, template, space)

    @property
    def is_meta(self) -> bool:
        return any(tensor.is_meta for tensor in self.objective.template)

    def _begin(self) -> None:
        """Creates state where there is none yet.

        A tensor that was projected and now passes, or the other way round, as its group's settings
        may have it, is of another shape inside: state there is reinitialized.
        """
        begun: dict[int, Entries] = {}
        for i, node, values in zip(self.applied, self.states, self.settings, strict=True):
            if not own_entries(node):
                extra = self.projection.named("init", key=self.objective.space.keys[i])
                begun[i] = self.projection.init(self.objective.template[i], values, **extra)
        nodes = self.state.nodes
        moved = [i for i, made in begun.items() if made and has_inside(nodes[i])]
        moved += [i for i in self.passing if own_entries(nodes[i])]
        if moved:
            wide = is_wide(self.projection, self.node.region)
            for i in range(self.count) if wide else moved:
                clear_inside(nodes[i])
            for i in self.passing:
                forget(nodes[i])
            if self.node.region is not None:
                self.node.region.bind(self.state.trees)  # its nodes know what state they have
        for i, made in begun.items():
            nodes[i].update(made)

    def facts(self) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
        """Returns params, grads and loss as a projection gets them."""
        params, grads, loss = facts(self.projection.needs, self.objective)
        placeholders = self.objective.template if params is None else params
        return self._pick(placeholders), None if grads is None else self._pick(grads), loss

    def _pick(self, tensors: Sequence[Any]) -> list[Any]:
        return [tensors[i] for i in self.applied]

    def receive(self, update: list[Tensor]) -> list[Tensor]:
        """Returns the update as the projection takes it."""
        if not self.applied or not self.projection.overrides("receive"):
            return update
        received = self.projection.receive(self._pick(update), self.states, self.settings)
        result = list(update)
        for i, tensor in zip(self.applied, received, strict=True):
            result[i] = tensor
        return result

    def refresh(self, update: list[Tensor]) -> None:
        """Lets the projection learn its map, and carries the state inside over to it."""
        if not self.applied or not self.projection.overrides("refresh"):
            return
        tensors = self._pick(update)
        new = self.projection.call_refresh(tensors, *self.facts(), self.states, self.settings)
        if new is not None:
            change_map(self, update, list(new))

    def materialize(self, update: list[Tensor]) -> list[list[str]]:
        """Puts what cannot be traced into the state; returns the names of the entries."""
        made = self.projection.materialize(self._pick(update), self.states, self.settings)
        for state, entries in zip(self.states, made, strict=True):
            state.update(entries)
        return [list(entries) for entries in made]

    def down(
        self, tensors: Sequence[Tensor], current: Current, states: list[Entries] | None = None
    ) -> list[Tensor]:
        """Returns tensors of the space in the projected space; those not projected as they are."""
        node = self.node
        if not self.applied:
            node.origins = [[i] for i in range(self.count)]
            return list(tensors)
        chosen = self._pick(tensors)
        states = self.states if states is None else states
        extra = self.projection.named("project", scratch=self.scratch)
        given = self.projection.project(
            chosen, *self.facts(), states, self.settings, current, **extra
        )
        if isinstance(given, Tensor):
            raise ContractError(
                f"{type(self.projection).__name__}.project returned a tensor. It returns a list of "
                "tensors. Return [tensor]; if its entries are tensors of their own, declare "
                "batch_dims = 1, too."
            )
        result = list(given)
        if self.projection.scope != "all":
            if len(result) != len(chosen):
                name, scope = type(self.projection).__name__, self.projection.scope
                raise ContractError(
                    f"{name}.project returned {len(result)} tensors for {len(chosen)} tensors. A "
                    f"projection of scope {scope!r} returns a list with one for each. Correct it, "
                    'or declare scope = "all".'
                )
            if len(node.origins) != len(node.space):
                node.origins = [[i] for i in range(len(node.space))]
            return self.inside(tensors, result)
        if node.batch_dims and self.passing:
            raise ContractError(
                f"{type(self.projection).__name__} declares batch_dims = {node.batch_dims}, but "
                f"does not apply to {len(self.passing)} tensors, which are no batches. Let it "
                "apply to all, or leave out batch_dims."
            )
        if len(node.origins) != len(result) + len(self.passing):
            origins = self.projection.origins(
                self._pick(self.objective.template), states, self.settings, len(result)
            )
            node.origins = [[self.applied[i] for i in origin] for origin in origins]
            node.origins += [[i] for i in self.passing]
        return result + [tensors[i] for i in self.passing]

    def up(
        self, tensors: Sequence[Tensor], current: Current, states: list[Entries] | None = None
    ) -> list[Tensor]:
        """Returns tensors of the projected space in the space outside."""
        if not self.applied:
            return list(tensors)
        full = self.projection.unproject(
            self.projected(tensors),
            *self.facts(),
            self.states if states is None else states,
            self.settings,
            current,
        )
        return self._outside(tensors, full)

    def combine(
        self, update: list[Tensor], projected: list[Tensor], result: list[Tensor]
    ) -> list[Tensor]:
        """Returns the full update, made from the one given and from what modules inside made."""
        if not self.applied or not self.projection.overrides("combine"):
            return self.up(result, "update")
        extra = self.projection.named("combine", scratch=self.scratch)
        full = self.projection.combine(
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
            **extra,
        )
        return self._outside(result, full)

    def writes(
        self,
        writer: Callable[..., list[Write]],
        targets: list[Tensor],
        blends: list[Blend],
        update: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
    ) -> list[Write]:
        """Returns what writes the projected ones of the parameters."""
        if not self.applied:
            return []
        return writer(
            self._pick(targets),
            self._pick(blends),
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
            **self.projection.named("combine", scratch=self.scratch),
        )

    def targets(self, params: list[Tensor]) -> list[Tensor] | None:
        """Returns tensors inside that the projection has written in place of parameters."""
        if not self.projection.overrides("targets"):
            return None
        own = self.projection.targets(self._pick(params), self.states, self.settings)
        return None if own is None else self.inside(params, list(own))

    def copies(self, params: list[Tensor], targets: list[Tensor]) -> list[Write]:
        """Returns what makes parameters to what was written in their place."""
        chosen = _chosen(self.applied, self.objective.active)
        if not chosen or not self.node.owns:
            return []
        some, written = [params[i] for i in chosen], [targets[i] for i in chosen]
        return [Write(some[0], partial(_copy_, some, written))]

    def projected(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Picks, of all tensors inside, those that were projected."""
        if self.projection.scope != "all":
            return [tensors[i] for i in self.applied]
        return list(tensors[: len(tensors) - len(self.passing)])

    def inside(self, tensors: Sequence[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """Puts projected tensors in their places among all tensors inside."""
        if self.projection.scope == "all":
            return projected + list(tensors[len(projected) :])
        result = list(tensors)
        for i, tensor in zip(self.applied, projected, strict=True):
            result[i] = tensor
        return result

    def _outside(self, tensors: Sequence[Tensor], full: Iterable[Tensor]) -> list[Tensor]:
        result: list[Any] = [None] * self.count
        full = list(full)
        if len(full) != len(self.applied):
            raise ContractError(
                f"{type(self.projection).__name__} returned {len(full)} tensors from its space, "
                f"for {len(self.applied)} that were projected. It returns one for each. Correct "
                "its unproject or combine."
            )
        for i, tensor in zip(self.applied, full, strict=True):
            result[i] = tensor
        passed = self.passing
        if self.projection.scope == "all":
            tail: Sequence[Tensor] = tensors[len(tensors) - len(passed) :]
        else:
            tail = [tensors[i] for i in passed]
        for i, tensor in zip(passed, tail, strict=True):
            result[i] = tensor
        return result


class ProjectedObjective(Objective):
    """The facts as seen inside a projection; each is projected when first asked for."""

    def __init__(self, crossing: Crossing, template: list[Tensor], space: Space) -> None:
        self.space = space
        self.context = crossing.objective.context
        self.template = template
        self._crossing = crossing
        self._params: list[Tensor] | None = None
        self._grads: list[Tensor] | None = None

    @property
    def params(self) -> list[Tensor]:
        if self._params is None:
            self._params = self._crossing.down(self._crossing.objective.params, "params")
        return self._params

    @property
    def grads(self) -> list[Tensor]:
        if self._grads is None:
            self._grads = self._crossing.down(self._crossing.objective.grads, "grads")
        return self._grads

    @property
    def loss(self) -> Tensor | None:
        return self._crossing.objective.loss

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        crossing, outer = self._crossing, self._crossing.objective
        if crossing.projection.geometry == "linear":
            shift = crossing.up(torch._foreach_sub(list(point), self.params), "params")
            full = list(torch._foreach_add(outer.params, shift))
        else:
            full = crossing.up(point, "params")
        loss, grads = outer.evaluate(full, backward)
        return loss, None if grads is None else crossing.down(grads, "grads")


def _copy_(targets: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    if any(hasattr(target, "device_mesh") for target in targets):  # torch 2.13 has no list of these
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
    else:
        torch._foreach_copy_(list(targets), list(tensors))


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _merged(groups: Sequence[Any], origin: Sequence[int]) -> Any:
    """The group of a tensor made from several others: theirs, if they share it, else all."""
    if len(origin) == 1:
        return groups[origin[0]]
    found = dict.fromkeys(g for i in origin for g in _as_tuple(groups[i]))
    return tuple(found)


def _as_tuple(group: Any) -> tuple[Any, ...]:
    return group if isinstance(group, tuple) else (group,)


def _merged_sources(sources: Sequence[tuple[int, ...]], origin: Sequence[int]) -> tuple[int, ...]:
    if len(origin) == 1:
        return sources[origin[0]]
    return tuple(sorted({source for i in origin for source in sources[i]}))


def _active(active: Sequence[int] | None, origins: Sequence[Sequence[int]]) -> list[int] | None:
    """The tensors inside that are made from one that has a gradient; None for all."""
    if active is None:
        return None
    chosen = set(active)
    found = [j for j, origin in enumerate(origins) if chosen.intersection(origin)]
    return None if len(found) == len(origins) else found


def _chosen(indices: Sequence[int], active: Sequence[int] | None) -> list[int]:
    return list(indices) if active is None else [i for i in indices if i in set(active)]


def _share(views: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Whether tensors inside are views of those outside, element by element."""
    return all(
        view.nbytes == target.nbytes
        and view.untyped_storage()._cdata == target.untyped_storage()._cdata
        for view, target in zip(views, targets, strict=True)
    )
