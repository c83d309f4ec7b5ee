"""A projection's map, called as the kernel calls it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from projcore import Current, Entries, ProjectionBase, Settings
from projcore.engine.tensor_ids import tensor_ids_inside
from projcore.testing.law import NotApplicable
from projcore.testing.problem import flat, shaped

# The matrices of maps that do not change, by projection and by space.
_FIXED: WeakKeyDictionary[ProjectionBase, dict[object, Tensor]] = WeakKeyDictionary()


class Map:
    """The map of a projection at one point, with memory of its own.

    Facts that the projection does not declare in ``needs`` are withheld: its ``params`` are then
    filled with NaN. Tensors it does not apply to pass through.

    Args:
        projection: The projection.
        like: Tensors of the shapes and dtypes of the space outside.
        tensor_ids: The number that identifies each; by default its index.

    Attributes:
        states: The projection's memory, one dict for each tensor that it applies to.
        settings: Its settings, likewise.
    """

    def __init__(
        self,
        projection: ProjectionBase,
        like: Sequence[Tensor],
        tensor_ids: Sequence[int] | None = None,
    ) -> None:
        self.scratch: dict[str, Any] = {}
        self.projection = projection
        self.like = list(like)
        self.tensor_ids = list(range(len(like))) if tensor_ids is None else list(tensor_ids)
        defaults: Settings = projection.defaults
        self.applied = [i for i, t in enumerate(like) if projection.applies(t, defaults)]
        if not self.applied:
            raise NotApplicable("it applies to none of the tensors of this check")
        self.settings: list[Settings] = [defaults] * len(self.applied)
        self.states: list[Entries] = [
            dict(projection.init(like[i], defaults, **self._keyed(i))) for i in self.applied
        ]
        self.facts: tuple[list[Tensor], list[Tensor] | None, Tensor | None]
        self.facts = ([torch.full_like(like[i], torch.nan) for i in self.applied], None, None)
        self.inside: list[Tensor] = []

    def _keyed(self, i: int) -> dict[str, int]:
        """The keyword ``key`` of an `init` that takes it."""
        return self.projection.named("init", tensor_id=self.tensor_ids[i])

    def tensor_ids_inside(self) -> list[int]:
        """Returns the numbers by which the tensors inside are told apart."""
        if self.projection.scope != "all":
            return self.tensor_ids
        count = len(self.inside) - len(self.like) + len(self.applied)
        origins = self.projection.origins(self.pick(self.like), self.states, self.settings, count)
        chosen = [self.tensor_ids[i] for i in self.applied]
        passing = [number for i, number in enumerate(self.tensor_ids) if i not in self.applied]
        return tensor_ids_inside(chosen, origins) + passing

    def learn(
        self,
        update: Sequence[Tensor],
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        loss: Tensor,
    ) -> None:
        """Sets this step's facts, and lets the projection learn its map."""
        needs = self.projection.needs
        hidden = [torch.full_like(tensor, torch.nan) for tensor in self.pick(self.like)]
        self.facts = (
            self.pick(params) if "params" in needs else hidden,
            self.pick(grads) if "grads" in needs else None,
            loss if "loss" in needs else None,
        )
        tensors = self.pick(update)
        new = self.projection.call_refresh(tensors, *self.facts, self.states, self.settings)
        for state, entries in zip(self.states, new or [None] * len(self.states), strict=True):
            state.update(entries or {})
        self.inside = self.project(update, "update")

    def pick(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns those of the tensors that the projection applies to."""
        return [tensors[i] for i in self.applied]

    def project(self, tensors: Sequence[Tensor], current: Current) -> list[Tensor]:
        """Returns the tensors inside; those that pass through keep their places, or are last.

        They are last for scope ``"all"``.
        """
        inside = list(
            self.projection.project(
                self.pick(tensors),
                *self.facts,
                self.states,
                self.settings,
                current,
                **self.projection.named("project", scratch=self.scratch),
            )
        )
        if self.projection.scope != "all":
            made = dict(zip(self.applied, inside, strict=True))
            return [made.get(i, tensor) for i, tensor in enumerate(tensors)]
        return inside + [t for i, t in enumerate(tensors) if i not in self.applied]

    def unproject(self, tensors: Sequence[Tensor], current: Current) -> list[Tensor]:
        """Undoes `project`: returns tensors outside."""
        inside, passing = self._apart(tensors)
        result = iter(
            self.projection.unproject(
                inside,
                *self.facts,
                self.states,
                self.settings,
                current,
            )
        )
        rest = iter(passing)
        return [next(result if i in self.applied else rest) for i in range(len(self.like))]

    def _apart(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns, of the tensors inside, the projected ones and those that pass through."""
        if self.projection.scope == "all":
            count = len(tensors) - len(self.like) + len(self.applied)
            return list(tensors[:count]), list(tensors[count:])
        passing = [tensor for i, tensor in enumerate(tensors) if i not in self.applied]
        return self.pick(tensors), passing

    def combine(self, update: Sequence[Tensor], result: Sequence[Tensor]) -> list[Tensor]:
        """Returns the full update, made by the projection's `combine`; its memory stays."""
        if type(self.projection).combine is ProjectionBase.combine:
            return self.unproject(result, "update")
        inside, _ = self._apart(self.inside)
        made_inside, passing = self._apart(result)
        full = self.projection.combine(
            self.pick(update),
            inside,
            made_inside,
            *self.facts,
            copy.deepcopy(self.states),
            self.settings,
            **self.projection.named("combine", scratch=self.scratch),
        )
        made, rest = iter(full), iter(passing)
        return [next(made if i in self.applied else rest) for i in range(len(self.like))]

    def matrix(self) -> Tensor:
        r"""Returns :math:`U` in real coordinates, shape ``(outside, inside)``, column by column.

        Where nothing that a step brings can change the map, the columns are computed once for each
        projection object.
        """
        if self.projection.needs or type(self.projection).refresh is not ProjectionBase.refresh:
            return self._columns()
        known = _FIXED.setdefault(self.projection, {})
        space = tuple((tensor.shape, tensor.dtype) for tensor in self.like)
        given = (space, tuple(self.tensor_ids))
        if given not in known:
            known[given] = self._columns()
        return known[given]

    def _columns(self) -> Tensor:
        eye = torch.eye(flat(self.inside).numel(), dtype=torch.float64)
        columns = [flat(self.unproject(shaped(row, self.inside), "update")) for row in eye]
        return torch.stack(columns, dim=1)


def learnt(
    projection: ProjectionBase, update: list[Tensor], params: list[Tensor], loss: Tensor
) -> Map:
    """Returns the map of a projection, learnt from a gradient that is also the update.

    It is not the first that it learns from: a map may well begin as the identity.
    """
    made = Map(projection, params)
    for earlier in (params, [tensor.flip(tuple(range(tensor.ndim))) for tensor in update], update):
        made.learn(earlier, params, earlier, loss)
    return made
