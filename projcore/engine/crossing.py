"""The way of tensors into the space of a projection and out of it, in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from projcore.core.objective import Evaluation, Objective
from projcore.core.projection import Current
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node as Entries
from projcore.core.writer import Blend, Write
from projcore.engine.nodes import facts
from projcore.engine.transport import (
    change_map,
    clear_inside,
    forget,
    has_inside,
    is_wide,
    own_entries,
)
from projcore.errors import ContractError

if TYPE_CHECKING:
    from projcore.engine.inside import Inside

T = TypeVar("T")


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
        if self.node.site.ready or not (self.passing or self.projection.overrides("init")):
            return
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
        full = self._call(self.projection.combine, update, projected, result)
        return self._outside(result, full)

    def _call(
        self,
        hook: Callable[..., T],
        update: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
    ) -> T:
        """Calls a hook with the arguments of `combine`."""
        return hook(
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
            **self.projection.named("combine", scratch=self.scratch),
        )

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
        writing = partial(writer, self._pick(targets), self._pick(blends))
        return self._call(writing, update, projected, result)

    def targets(self, params: list[Tensor]) -> list[Tensor] | None:
        """Returns tensors inside that the projection has written in place of parameters."""
        if not self.projection.overrides("targets"):
            return None
        own = self.projection.targets(self._pick(params), self.states, self.settings)
        return None if own is None else self.inside(params, list(own))

    def copies(self, params: list[Tensor], targets: list[Tensor]) -> list[Write]:
        """Returns what makes parameters to what was written in their place."""
        chosen = with_gradient(self.applied, self.objective.active)
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

    @cached_property
    def params(self) -> list[Tensor]:
        return self._crossing.down(self._crossing.objective.params, "params")

    @cached_property
    def grads(self) -> list[Tensor]:
        return self._crossing.down(self._crossing.objective.grads, "grads")

    @property
    def loss(self) -> Tensor | None:
        return self._crossing.objective.loss

    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        crossing, outer = self._crossing, self._crossing.objective
        if crossing.projection.geometry == "linear":
            shift = crossing.up(torch._foreach_sub(list(point), self.params), "params")
            full = list(torch._foreach_add(outer.params, shift))
        else:
            full = crossing.up(list(point), "params")
        loss, grads = outer.evaluate(full, backward)
        return loss, None if grads is None else crossing.down(grads, "grads")


def with_gradient(indices: Sequence[int], active: Sequence[int] | None) -> list[int]:
    """Returns those of some tensors that have a gradient."""
    return list(indices) if active is None else [i for i in indices if i in set(active)]


def _copy_(targets: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    if any(hasattr(target, "device_mesh") for target in targets):  # torch 2.13 has no list of these
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
    else:
        torch._foreach_copy_(list(targets), list(tensors))
