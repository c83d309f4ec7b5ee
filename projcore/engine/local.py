"""Sharded parameters (`DTensor`) under elementwise modules, which run on the parts in each process.

They would do the same to the sharded tensors; but torch takes some tenths of a millisecond over
each operation on one of these (2.13), and its fused kernels as long for each tensor.
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
    """Takes sharded tensors to the parts of them that are in this process."""

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
    """Runs an elementwise module on the parts of sharded tensors that are in this process.

    The state of a tensor is where it is without shards, of the shape of the part.
    """
