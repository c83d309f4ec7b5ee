"""Splits batches into their items, for modules that do not support batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore.core.projection import ProjectionBase
from projcore.core.space import Space


class Items(ProjectionBase):
    """Projects each batch to the list of its items."""

    geometry = "layout"

    def __init__(self, space: Space) -> None:
        self.defaults, self.children, self.project_update = {}, {}, True
        self.dims = space.batch_dims
        self.counts = [math.prod(tensor.shape[: self.dims]) for tensor in space.template]

    def origins(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[i] for i, items in enumerate(self.counts) for _ in range(items)]

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        batches = [tensor.flatten(0, self.dims - 1) for tensor in tensors]
        return [item for batch in batches for item in batch.unbind(0)]

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        items = iter(projected_tensors)
        return [
            torch.stack(list(itertools.islice(items, count))).reshape(param.shape)
            if count
            else param
            for count, param in zip(self.counts, params, strict=True)
        ]
