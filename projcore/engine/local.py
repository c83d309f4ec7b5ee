"""Elementwise modules on sharded parameters (`DTensor`): they run on the local shards.

They would give the same result on the sharded tensors; but torch 2.13 spends some tenths of a
millisecond on each operation on such a tensor, and its fused kernels as much per tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore.core.module import Module
from projcore.core.projection import ProjectionBase
from projcore.engine.inside import Inside
from projcore.engine.shards import local_like
from projcore.ops import as_part


class Local(ProjectionBase):
    """Projects each sharded tensor to its local shard."""

    geometry = "layout"
    scope = "tensor"

    def __init__(self, module: Module) -> None:
        self.defaults, self.children, self.project_update = {}, {}, True
        self.module = module

    def project(
        self, tensors: list[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        return list(map(local_like, tensors, params))

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        return list(map(as_part, projected_tensors, params))


class OnParts(Inside):
    """Runs an elementwise module on the local shards of sharded tensors.

    The state of a tensor is at the same position as without shards, and has the local shape.
    """
