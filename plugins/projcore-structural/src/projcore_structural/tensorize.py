"""Tensors reshaped to cubes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import ProjectionBase, require
from projcore_structural.reshape import back


class Tensorize(ProjectionBase):
    r"""Runs modules on tensors reshaped to cubes: near-square matrices, or more dimensions.

    The :math:`n` elements, in row-major order and followed by zeros, fill a tensor of :math:`k`
    dimensions, each of the smallest size :math:`d` with :math:`d^k \ge n`; then, from the last
    dimension on, each is shortened as far as the others allow, so there are fewer zeros than one
    slice has elements. So matrix methods apply to vectors, too: Muon, Shampoo, SOAP.

    The zeros are padding. Projected updates are zero there, so norms and inner products are the
    same as outside, and the results of modules there are dropped. With :math:`U` the map that drops
    them, :math:`U U^\top = I`: nothing is lost.

    Use it inside `VectorProjection` for one cube of all parameters.

    Args:
        modules: The modules to run on the cubes.
        ndim: The smallest :math:`k`, at least 1.
        max_side: The largest size of a dimension, at least 2: :math:`k` grows as needed. None for
            no bound.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If `ndim` is below 1 or `max_side` below 2.

    Cost: a copy of each tensor; elementwise modules inside process the zeros, too.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> bias = torch.nn.Parameter(torch.zeros(10))
        >>> optimizer = Optimizer([bias], Tensorize([Muon()]), LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter  shape  dtype    group  inside  state bytes
        ---------  -----  -------  -----  ------  -----------
        0          10     float32  0      4 x 3   48

    References:
        torchzero's `Tensorize` makes one cube of all parameters; its number of dimensions is one
        too large where :math:`n` is a power of the side (a rounded logarithm).
    """

    scope = "tensor"
    geometry = "pointwise"

    def __init__(
        self,
        modules: Any,
        ndim: int = 2,
        max_side: int | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require(self, "ndim", ndim, minimum=1)
        if max_side is not None:
            require(self, "max_side", max_side, minimum=2)
        self.ndim = ndim
        self.max_side = max_side
        super().__init__(modules, project_update, project_params, project_grad)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        result = []
        for tensor in tensors:
            shape = sides(tensor.numel(), self.ndim, self.max_side)
            zeros = math.prod(shape) - tensor.numel()
            flat = tensor.reshape(-1)
            if zeros:
                flat = torch.nn.functional.pad(flat, (0, zeros))
            result.append(flat.reshape(shape))
        return result

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        flat = [
            cube.reshape(-1)[: param.numel()]
            for cube, param in zip(projected_tensors, params, strict=True)
        ]
        return back(flat, params)


def sides(count: int, ndim: int, max_side: int | None = None) -> tuple[int, ...]:
    """Returns the shape of the cube for `count` elements, in integer arithmetic."""
    if max_side is not None:
        while max_side**ndim < count:
            ndim += 1
    side = root(count, ndim)
    shape = [side] * ndim
    for i in reversed(range(ndim)):
        others = math.prod(shape) // max(shape[i], 1)
        shape[i] = -(-count // max(others, 1))
    return tuple(shape)


def root(count: int, degree: int) -> int:
    """Returns the smallest integer whose power of that degree is at least `count`."""
    result = int(count ** (1 / degree))  # truncated, so it may be too small, but never too large
    while result**degree < count:
        result += 1
    return result
