"""Maps tensors into the space of a projection and back, in one step."""

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
from projcore.core.state import Entries
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
    """A projection, bound to the facts of a step and to the state of its map."""

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
        settings = objective.settings_at(state.path)
        self.states = [state.entries[i] for i in self.applied]
        self.settings: list[Settings] = [settings[i] for i in self.applied]
        self.scratch: dict[str, Any] = {}
        if not torch.compiler.is_compiling():  # in a graph all state exists: `Inside.is_settled`
            self._create_state()

    @property
    def count(self) -> int:
        return len(self.objective.template)

    @property
    def indices_inside(self) -> Sequence[int]:
        """The indices of the inner tensors in the inner region."""
        if self.selected is not None and self.projection.scope != "all":
            return self.selected
        return range(len(self.node.origins))

    def select(self, indices: Sequence[int]) -> Crossing:
        """Returns the crossing of some of the tensors."""
        return Crossing(self.node, self.objective.select(indices), indices)

    def inside_objective(self, template: list[Tensor], space: Space) -> Objective:
        """Returns the facts of the space inside; the template has its shapes."""
        return ProjectedObjective(self, template, space)

    @property
    def is_meta(self) -> bool:
        return any(tensor.is_meta for tensor in self.objective.template)

    def _create_state(self) -> None:
        """Creates state that does not exist yet.

        If a group's settings change whether a tensor is projected, its inner shape changes, so that
        its inner state is reinitialized.
        """
        if self.node.site.ready or not (self.passing or self.projection.overrides("init")):
            return
        created: dict[int, Entries] = {}
        for i, node, values in zip(self.applied, self.states, self.settings, strict=True):
            if not own_entries(node):
                extra = self.projection.named("init", tensor_id=self.objective.space.tensor_ids[i])
                created[i] = self.projection.init(self.objective.template[i], values, **extra)
        nodes = self.state.entries
        switched = [i for i, entries in created.items() if entries and has_inside(nodes[i])]
        switched += [i for i in self.passing if own_entries(nodes[i])]
        if switched:
            wide = is_wide(self.projection, self.node.region)
            for i in range(self.count) if wide else switched:
                clear_inside(nodes[i])
            for i in self.passing:
                forget(nodes[i])
            if self.node.region is not None:
                self.node.region.bind(self.state.trees)  # its nodes refer to the removed state
        for i, entries in created.items():
            nodes[i].update(entries)

    def facts(self) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
        """Returns params, grads and loss of the tensors that are projected."""
        params, grads, loss = facts(self.projection.needs, self.objective)
        placeholders = self.objective.template if params is None else params
        return self._applied(placeholders), None if grads is None else self._applied(grads), loss

    def _applied(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns those of the outer tensors that are projected."""
        return [tensors[i] for i in self.applied]

    def adjust_update(self, update: list[Tensor]) -> list[Tensor]:
        """Returns the update with the tensors that the projection's `adjust_update` returns."""
        if not self.applied or not self.projection.overrides("adjust_update"):
            return update
        received = self.projection.adjust_update(self._applied(update), self.states, self.settings)
        result = list(update)
        for i, tensor in zip(self.applied, received, strict=True):
            result[i] = tensor
        return result

    def refresh(self, update: list[Tensor]) -> None:
        """Lets the projection recompute its map, and adapts the state inside."""
        if not self.applied or not self.projection.overrides("refresh"):
            return
        tensors = self._applied(update)
        new = self.projection.call_refresh(tensors, *self.facts(), self.states, self.settings)
        if new is not None:
            change_map(self, update, list(new))

    def materialize(self, update: list[Tensor]) -> list[list[str]]:
        """Adds the entries that cannot be traced to the state; returns their names."""
        every = self.projection.materialize(self._applied(update), self.states, self.settings)
        for state, entries in zip(self.states, every, strict=True):
            state.update(entries)
        return [list(entries) for entries in every]

    def down(
        self, tensors: Sequence[Tensor], current: Current, states: list[Entries] | None = None
    ) -> list[Tensor]:
        """Returns the inner tensors for outer ones; those that are not projected are unchanged."""
        node = self.node
        if not self.applied:
            node.origins = [[i] for i in range(self.count)]
            return list(tensors)
        applied = self._applied(tensors)
        states = self.states if states is None else states
        extra = self.projection.named("project", scratch=self.scratch)
        projected = self.projection.project(
            applied, *self.facts(), states, self.settings, current, **extra
        )
        if isinstance(projected, Tensor):
            raise ContractError(
                f"{type(self.projection).__name__}.project returned a tensor. It must return a "
                "list of tensors. Return [tensor]; if it is a batch of independent tensors, also "
                "declare batch_dims = 1."
            )
        result = list(projected)
        if self.projection.scope != "all":
            if len(result) != len(applied):
                name, scope = type(self.projection).__name__, self.projection.scope
                raise ContractError(
                    f"{name}.project returned {len(result)} tensors for {len(applied)} tensors. A "
                    f"projection of scope {scope!r} must return one for each. Correct it, or "
                    'declare scope = "all".'
                )
            if len(node.origins) != len(node.space):
                node.origins = [[i] for i in range(len(node.space))]
            return self.inside(tensors, result)
        if node.batch_dims and self.passing:
            raise ContractError(
                f"{type(self.projection).__name__} declares batch_dims = {node.batch_dims}, but "
                f"does not apply to {len(self.passing)} tensors, which are not batches. Let "
                "`applies` return True for all, or leave out batch_dims."
            )
        if len(node.origins) != len(result) + len(self.passing):
            origins = self.projection.origins(
                self._applied(self.objective.template), states, self.settings, len(result)
            )
            node.origins = [[self.applied[i] for i in origin] for origin in origins]
            node.origins += [[i] for i in self.passing]
        return result + [tensors[i] for i in self.passing]

    def up(
        self, tensors: Sequence[Tensor], current: Current, states: list[Entries] | None = None
    ) -> list[Tensor]:
        """Returns the outer tensors for inner ones."""
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
        """Returns the full update, made from the given one and the inner result."""
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
            self._applied(update),
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
        """Returns the writes of the parameters that are projected."""
        if not self.applied:
            return []
        hook = partial(writer, self._applied(targets), self._applied(blends))
        return self._call(hook, update, projected, result)

    def targets(self, params: list[Tensor]) -> list[Tensor] | None:
        """Returns the inner tensors that are written instead of the parameters, or None."""
        if not self.projection.overrides("targets"):
            return None
        own = self.projection.targets(self._applied(params), self.states, self.settings)
        return None if own is None else self.inside(params, list(own))

    def copies(self, params: list[Tensor], targets: list[Tensor]) -> list[Write]:
        """Returns the writes that copy the inner targets into the parameters."""
        indices = with_gradient(self.applied, self.objective.active)
        if not indices or not self.node.owns:
            return []
        some, written = [params[i] for i in indices], [targets[i] for i in indices]
        return [Write(some[0], partial(_copy_, some, written))]

    def projected(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns those of the inner tensors that are projected."""
        if self.projection.scope != "all":
            return [tensors[i] for i in self.applied]
        return list(tensors[: len(tensors) - len(self.passing)])

    def inside(self, tensors: Sequence[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """Returns the inner tensors, with these in place of the projected ones."""
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
                f"{type(self.projection).__name__} returned {len(full)} unprojected tensors for "
                f"{len(self.applied)} projected ones. It must return one for each. Correct its "
                "unproject or combine."
            )
        for i, tensor in zip(self.applied, full, strict=True):
            result[i] = tensor
        if self.projection.scope == "all":
            passed: Sequence[Tensor] = tensors[len(tensors) - len(self.passing) :]
        else:
            passed = [tensors[i] for i in self.passing]
        for i, tensor in zip(self.passing, passed, strict=True):
            result[i] = tensor
        return result


class ProjectedObjective(Objective):
    """The facts inside a projection; each is projected when it is first read."""

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
    """Returns those indices whose tensors have a gradient."""
    return list(indices) if active is None else [i for i in indices if i in set(active)]


def _copy_(targets: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    if any(hasattr(target, "device_mesh") for target in targets):  # not in lists in torch 2.13
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
    else:
        torch._foreach_copy_(list(targets), list(tensors))
