"""The passage of a step through a projection, and the facts as seen on the other side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projcore.core.module import facts
from projcore.core.objective import Evaluation, Objective, merge_settings
from projcore.core.settings import Settings
from projcore.core.state import Node, State
from projcore.errors import ArgumentError, ContractError

if TYPE_CHECKING:
    from projcore.core.blend import Blend, Write
    from projcore.core.projection import Current, ProjectionBase

INNER = "modules"


class Crossing:
    """One step's passage through a projection: which tensors cross, by which map, and back."""

    def __init__(self, projection: ProjectionBase, objective: Objective, state: State) -> None:
        self.projection = projection
        self.objective = objective
        self.count = len(objective.template)
        settings = objective.settings(state.path)
        self.applied = [
            i
            for i, (tensor, values) in enumerate(zip(objective.template, settings, strict=True))
            if projection.applies(tensor, values)
        ]
        self.state = state
        self.states = [state.nodes[i] for i in self.applied]
        self.settings = [settings[i] for i in self.applied]
        self.passing = sorted(set(range(self.count)) - set(self.applied))
        self._begin()
        self.origins: list[list[int]] = []

    def _begin(self) -> None:
        """Creates memory where there is none yet.

        A tensor that was projected and now passes, or the other way round, as its group's settings
        may have it, is of another shape inside: memory there begins anew.
        """
        begun: dict[int, Node] = {}
        for i, node, values in zip(self.applied, self.states, self.settings, strict=True):
            if not _own_keys(node):
                extra = self.projection.named("init", index=self.objective.sources[i][0])
                begun[i] = self.projection.init(self.objective.template[i], values, **extra)
        nodes = self.state.nodes
        moved = [i for i, made in begun.items() if made and any(nodes[i].values())]
        moved += [i for i in self.passing if _own_keys(nodes[i])]
        if moved:
            wide = self.projection.chain.total_scope == "all"
            for i in range(self.count) if wide else moved:
                for key in [key for key, value in nodes[i].items() if isinstance(value, dict)]:
                    del nodes[i][key]
            for i in self.passing:
                for key in _own_keys(nodes[i]):
                    del nodes[i][key]
        for i, made in begun.items():
            nodes[i].update(made)

    def check_applies(self) -> None:
        """Raises if the projection applies to no tensor at all."""
        if not self.applied:
            shapes = [tuple(tensor.shape) for tensor in self.objective.template]
            raise ArgumentError(
                f"{self.projection} applies to none of its {self.count} tensors, of shapes "
                f"{', '.join(map(str, shapes[:5]))}{', ...' if self.count > 5 else ''}. "
                "Change its settings, or remove it."
            )

    def facts(self) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
        params, grads, loss = facts(self.projection.needs, self.objective)
        stand_ins = self.objective.template if params is None else params
        return self._pick(stand_ins), None if grads is None else self._pick(grads), loss

    def _pick(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i] for i in self.applied]

    def receive(self, update: list[Tensor]) -> list[Tensor]:
        """Returns the update as the projection takes it."""
        if not self.applied or not self.projection.overrides("receive"):
            return update
        received = self.projection.receive(self._pick(update), self.states, self.settings)
        return self._outside(update, received, passing=update)

    def refresh(self, update: list[Tensor]) -> None:
        """Lets the projection learn its map, and carries the memory inside over to it."""
        if not self.applied or not self.projection.overrides("refresh"):
            return
        tensors = self._pick(update)
        new = self.projection.call_refresh(tensors, *self.facts(), self.states, self.settings)
        if new is not None:
            from projcore.core.transport import change_map

            change_map(self, update, list(new))

    def down(self, tensors: list[Tensor], current: Current) -> list[Tensor]:
        """Returns tensors of the space in the projected space; those not projected as they are."""
        if not self.applied:
            self.origins = [[i] for i in range(self.count)]
            return list(tensors)
        chosen = self._pick(tensors)
        given = self.projection.project(chosen, *self.facts(), self.states, self.settings, current)
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
            self.origins = [[i] for i in range(self.count)]
            return self.inside(tensors, result)
        if self.batch_dims and self.passing:
            raise ContractError(
                f"{type(self.projection).__name__} declares batch_dims = {self.batch_dims}, but "
                f"does not apply to {len(self.passing)} tensors, which are no batches. Let it "
                "apply to all, or leave out batch_dims."
            )
        origins = self.projection.origins(
            self._pick(self.objective.template), self.states, self.settings, len(result)
        )
        self.origins = [[self.applied[i] for i in origin] for origin in origins]
        self.origins += [[i] for i in self.passing]
        return result + [tensors[i] for i in self.passing]

    @property
    def batch_dims(self) -> int:
        """How many leading dimensions of each tensor inside index independent tensors."""
        if self.projection.scope != "all":
            return self.objective.batch_dims
        return self.projection.batch_dims if self.applied else 0

    def up(self, tensors: Sequence[Tensor], current: Current) -> list[Tensor]:
        """Returns tensors of the projected space in the space outside."""
        if not self.applied:
            return list(tensors)
        full = self.projection.unproject(
            self.projected(tensors),
            *self.facts(),
            self.states,
            self.settings,
            current,
        )
        return self._outside(tensors, full)

    def combine(
        self, update: list[Tensor], projected: list[Tensor], result: list[Tensor]
    ) -> list[Tensor]:
        """Returns the full update, made from what came in and what the modules inside returned."""
        if not self.applied or not self.projection.overrides("combine"):
            return self.up(result, "update")
        full = self.projection.combine(
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
        )
        return self._outside(result, full)

    def writes(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        update: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
    ) -> list[Write]:
        """Returns what writes the projected ones of the parameters."""
        return self.projection.writes(
            targets,
            blends,
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
        )

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

    def _outside(
        self,
        tensors: Sequence[Tensor],
        full: Iterable[Tensor],
        passing: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
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
        if passing is not None:
            tail: Sequence[Tensor] = [passing[i] for i in passed]
        elif self.projection.scope == "all":
            tail = tensors[len(tensors) - len(passed) :]
        else:
            tail = [tensors[i] for i in passed]
        for i, tensor in zip(passed, tail, strict=True):
            result[i] = tensor
        return result

    def memory(self, state: State) -> State:
        """Returns the memory of the modules inside."""
        return state.inside(INNER, self.origins, f"{state.path}/{INNER}")


def _own_keys(node: Node) -> list[str]:
    """The keys of a projection's node under which it keeps memory of its own."""
    return [key for key, value in node.items() if not isinstance(value, dict)]


class ProjectedObjective(Objective):
    """The facts as seen inside a projection; each is projected when first asked for."""

    def __init__(self, crossing: Crossing, template: list[Tensor]) -> None:
        outer = crossing.objective
        self.template = template
        self.elide = outer.elide
        self.parameter_names = outer.parameter_names
        self.absent = outer.absent
        self.groups = [
            outer.groups[origin[0]]
            if len(origin) == 1
            else tuple(dict.fromkeys(outer.groups[i] for i in origin))
            for origin in crossing.origins
        ]
        self.batch_dims = crossing.batch_dims
        if outer.active is not None:
            chosen = set(outer.active)
            active = [j for j, origin in enumerate(crossing.origins) if chosen & set(origin)]
            self.active = None if len(active) == len(template) else active
        self._crossing = crossing
        self._params: list[Tensor] | None = None
        self._grads: list[Tensor] | None = None

    @property
    def sources(self) -> list[tuple[int, ...]]:
        outer = self._crossing.objective.sources
        return [
            outer[origin[0]]
            if len(origin) == 1
            else tuple(sorted({source for i in origin for source in outer[i]}))
            for origin in self._crossing.origins
        ]

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

    def settings(self, path: str) -> list[Settings]:
        crossing = self._crossing
        return merge_settings(path, crossing.objective.settings(path), crossing.origins)

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        crossing, outer = self._crossing, self._crossing.objective
        if crossing.projection.geometry == "linear":
            shift = crossing.up(torch._foreach_sub(list(point), self.params), "params")
            full = list(torch._foreach_add(outer.params, shift))
        else:
            full = crossing.up(point, "params")
        loss, grads = outer.evaluate(full, backward)
        return loss, None if grads is None else crossing.down(grads, "grads")
