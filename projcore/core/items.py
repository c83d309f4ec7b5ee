"""Runs a module on each item of a batch by itself, if it cannot run on the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore.core.crossing import Crossing, ProjectedObjective
from projcore.core.module import Module, Row
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase
from projcore.core.state import State


class _Items(ProjectionBase):
    """Takes a batch apart into its items."""

    geometry = "layout"

    def __init__(self, objective: Objective) -> None:
        self.dims = objective.batch_dims
        self.template = objective.template
        self.counts = [math.prod(tensor.shape[: self.dims]) for tensor in self.template]

    def origins(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[i] for i, items in enumerate(self.counts) for _ in range(items)]

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        batches = [tensor.flatten(0, self.dims - 1) for tensor in tensors]
        return [item for batch in batches for item in batch.unbind(0)]

    def unproject(self, projected_tensors: Iterable[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        items = iter(projected_tensors)
        return [
            torch.stack(list(itertools.islice(items, count))).reshape(tensor.shape)
            if count
            else tensor
            for count, tensor in zip(self.counts, self.template, strict=True)
        ]


def run_items(
    module: Module, update: list[Tensor], objective: Objective, state: State
) -> list[Tensor]:
    """Runs a module on each item of a batch by itself; its memory is kept for each item."""
    crossing, items, memory = _take_apart(update, objective, state)
    result = module.step(items, ProjectedObjective(crossing, items), memory)
    return crossing.up(result, "update")


def prepare_items(module: Module, objective: Objective, state: State, rows: list[Row]) -> None:
    """Prepares a module for each item of a batch."""
    crossing, items, memory = _take_apart(objective.template, objective, state)
    module.prepare(ProjectedObjective(crossing, items), memory, rows)


def _take_apart(
    update: list[Tensor], objective: Objective, state: State
) -> tuple[Crossing, list[Tensor], State]:
    crossing = Crossing(_Items(objective), objective, state)
    items = crossing.down(update, "update")
    return crossing, items, state.inside("items", crossing.origins, state.path)
