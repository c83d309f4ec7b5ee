"""Blocks of tensors, stacked by shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Planner, ProjectionBase, Settings, Space
from projcore.errors import ArgumentError
from projcore_structural._parts import alike, as_tuple, refuse_stacks, stack


class BlockPartition(ProjectionBase):
    r"""Runs modules on blocks of tensors, each block a separate tensor.

    With one number, the elements of each tensor are cut into chunks, in row-major order. With two,
    matrices are cut into tiles; a tensor of more dimensions is treated as a matrix of the first by
    all other dimensions, and one of fewer is a single block. More numbers cut more dimensions in
    the same way.

    Blocks of one shape, dtype and device, from any tensors, form one stack with a leading dimension
    for the blocks (``batch_dims`` is 1), so a module that supports batches is called once for each
    shape. There is no padding: where lengths do not divide, blocks at the end are shorter and in
    separate stacks, so a norm inside is the norm of the block. The map is a permutation of the
    elements.

    Parameters whose blocks share a stack must agree on the settings of modules inside that are not
    elementwise. One without a gradient counts as a zero gradient there, and is not changed.

    Args:
        modules: The modules to run on the blocks.
        size: The length of a chunk, or the lengths of a tile: ``128``, ``(128, 128)``. A dimension
            of ``None`` is not cut.
        count: Instead of `size`, the number of chunks, or of tiles along each dimension; their
            lengths differ by 1 at most. A dimension that is shorter is cut into single elements.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: Unless exactly one of `size` and `count` is given, or if a number is below 1;
            when the optimizer is built, if it is inside a projection that already makes stacks.

    Cost: a copy of each tensor on the way in and out. Elementwise modules run outside, at no cost.
    A module of scope ``"tensor"`` that does not support batches runs on each block.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> model = torch.nn.Linear(6, 10, bias=False)
        >>> tiles = BlockPartition([Muon()], size=(4, 3))
        >>> optimizer = Optimizer(model.parameters(), tiles, LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter  shape   dtype    group  inside                state bytes
        ---------  ------  -------  -----  --------------------  -----------
        0          10 x 6  float32  0      4 x 4 x 3, 2 x 2 x 3  240

    References:
        torchzero's `BlockPartition` cuts into chunks; its batches are padded.
    """

    geometry = "layout"
    batch_dims = 1

    def __init__(
        self,
        modules: Any,
        size: int | Sequence[int | None] | None = None,
        count: int | Sequence[int] | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        numbers = as_tuple(count if size is None else size)
        whole = all(n is None or (type(n) is int and n >= 1) for n in numbers)
        if (size is None) == (count is None) or not whole or set(numbers) <= {None}:
            raise ArgumentError(
                f"BlockPartition was given size={size!r} and count={count!r}. Exactly one must be "
                "given: an integer, at least 1, or one for each dimension. Pass for example "
                "size=(128, 128)."
            )
        self.by_count = size is None
        self.numbers = numbers
        super().__init__(modules, project_update, project_params, project_grad)

    def plan(self, planner: Planner, space: Space) -> None:
        refuse_stacks(self, space)
        super().plan(planner, space)

    def origins(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings], projected: int
    ) -> list[list[int]]:
        return [
            sorted({i for region in regions for i in region.indices})
            for regions in self._stacks(params)
        ]

    def project(
        self, tensors: list[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        wholes: dict[int, Tensor] = {}
        result = []
        for regions in self._stacks(params):
            parts = []
            for region in regions:
                first = region.indices[0]
                if first not in wholes:
                    whole = stack([tensors[i] for i in region.indices])
                    wholes[first] = whole.reshape(len(region.indices), *region.shape)
                parts.append(region.cut(wholes[first]))
            result.append(torch.cat(parts) if len(parts) > 1 else parts[0])
        return result

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        wholes: dict[int, Tensor] = {}
        indices = {}
        for regions, blocks in zip(self._stacks(params), projected_tensors, strict=True):
            pieces = blocks.split([region.count for region in regions])
            for region, piece in zip(regions, pieces, strict=True):
                first = region.indices[0]
                indices[first] = region.indices
                if first not in wholes:
                    wholes[first] = blocks.new_empty((len(region.indices), *region.shape))
                region.paste(piece, wholes[first])
        result: dict[int, Tensor] = {}
        for first, whole in wholes.items():
            tensors = whole.reshape(len(indices[first]), *params[first].shape)
            result.update(zip(indices[first], tensors.unbind(0), strict=True))
        return [result[i] for i in range(len(params))]

    def _stacks(self, tensors: Sequence[Tensor]) -> list[list[Region]]:
        """Returns the regions from which the blocks of each stack come."""
        plan: dict[object, list[Region]] = {}
        for indices in alike(tensors, lambda tensor: tuple(tensor.shape)):
            tensor = tensors[indices[0]]
            for region in self._regions(tuple(tensor.shape), indices):
                key = (region.lengths, tensor.dtype, tensor.device)
                plan.setdefault(key, []).append(region)
        return list(plan.values())

    def _regions(self, shape: tuple[int, ...], indices: list[int]) -> list[Region]:
        dims = len(self.numbers)
        if dims == 1:
            shape = (math.prod(shape),)
        elif len(shape) < dims:
            return [Region(indices, shape, shape, (1,) * len(shape), (0,) * len(shape))]
        else:
            shape = (*shape[: dims - 1], math.prod(shape[dims - 1 :]))
        runs = [self._runs(*pair) for pair in zip(shape, self.numbers, strict=True)]
        regions = []
        for chosen in itertools.product(*runs):
            starts, lengths, counts = zip(*chosen, strict=True)
            regions.append(Region(indices, shape, lengths, counts, starts))
        return regions

    def _runs(self, length: int, number: int | None) -> list[tuple[int, int, int]]:
        """Returns the runs of equal pieces of a dimension, each as start, length and count."""
        if length == 0 or number is None:
            return [(0, length, 1)]
        if self.by_count:
            number = min(number, length)
            short, longer = divmod(length, number)
            runs = [(short + 1, longer), (short, number - longer)]
        else:
            whole, rest = divmod(length, number)
            runs = [(number, whole), (rest, 1)]
        found, start = [], 0
        for piece, count in runs:
            if piece and count:
                found.append((start, piece, count))
                start += piece * count
        return found


@dataclass(frozen=True)
class Region:
    """Adjacent blocks of one shape, in tensors of one shape.

    Attributes:
        indices: The tensors.
        shape: Their shape, with as many dimensions as there are numbers.
        lengths: The shape of a block.
        counts: The number of blocks along each dimension.
        starts: The start of the first block along each dimension.
    """

    indices: list[int]
    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of blocks in all tensors."""
        return len(self.indices) * math.prod(self.counts)

    def cut(self, whole: Tensor) -> Tensor:
        """Returns the blocks of a stack of the tensors, as a stack."""
        dims = len(self.shape)
        grid = self._view(whole).reshape(len(whole), *_interleave(self.counts, self.lengths))
        order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2))
        return grid.permute(order).reshape(self.count, *self.lengths)

    def paste(self, blocks: Tensor, whole: Tensor) -> None:
        """Undoes `cut`: writes the blocks into a stack of the tensors."""
        dims = len(self.shape)
        grid = blocks.reshape(len(whole), *self.counts, *self.lengths)
        order = (0, *_interleave(range(1, dims + 1), range(dims + 1, 2 * dims + 1)))
        view = self._view(whole)
        view.copy_(grid.permute(order).reshape(view.shape))

    def _view(self, whole: Tensor) -> Tensor:
        for dim, (start, length, count) in enumerate(
            zip(self.starts, self.lengths, self.counts, strict=True)
        ):
            whole = whole.narrow(dim + 1, start, length * count)
        return whole


def _interleave(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [n for pair in zip(one, other, strict=True) for n in pair]
