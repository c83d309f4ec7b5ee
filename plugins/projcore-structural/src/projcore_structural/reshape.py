"""Tensors in other shapes: reshaped, with merged dimensions, and permuted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from projcore import ProjectionBase, Settings, require
from projcore.errors import ArgumentError
from projcore_structural._parts import as_tuple


class Reshape(ProjectionBase):
    r"""Runs modules on reshaped tensors, with the elements in row-major order.

    Tensors that do not fit the shape pass unchanged to the same modules.

    Args:
        modules: The modules to run on the reshaped tensors.
        shape: The size of each dimension: -1 (once) is inferred, None keeps the size of the tensor.
            ``(None, -1)`` turns convolution kernels into matrices.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If `shape` has other entries; when the optimizer is built, if no tensor fits
            it.

    Cost: none for contiguous tensors, else a copy. Elementwise modules run outside, at no cost.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> kernel = torch.nn.Conv2d(3, 8, 5).weight
        >>> optimizer = Optimizer([kernel], Reshape([Muon()], (None, -1)), LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter  shape          dtype    group  inside  state bytes
        ---------  -------------  -------  -----  ------  -----------
        0          8 x 3 x 5 x 5  float32  0      8 x 75  2,400
    """

    scope = "tensor"
    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        shape: Sequence[int | None],
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        self.shape = as_tuple(shape)
        bad = [n for n in self.shape if n is not None and (not _is_int(n) or n < -1)]
        if bad or self.shape.count(-1) > 1:
            raise ArgumentError(
                f"Reshape was given the shape {shape!r}. It takes integers, at least 0, None for "
                "a size to keep, and at most one -1, which is inferred. Pass e.g. (None, -1)."
            )
        super().__init__(modules, project_update, project_params, project_grad)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return self.find(tensor.shape) is not None

    def find(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Returns the new shape for a tensor of that shape, or None if it does not fit."""
        if any(length is None and i >= len(shape) for i, length in enumerate(self.shape)):
            return None
        wanted = [shape[i] if length is None else length for i, length in enumerate(self.shape)]
        count, known = math.prod(shape), math.prod([length for length in wanted if length != -1])
        if -1 in wanted and known and count % known == 0:
            wanted[wanted.index(-1)] = count // known
            known = count
        return tuple(wanted) if -1 not in wanted and known == count else None

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return [tensor.reshape(self.find(tensor.shape) or ()) for tensor in tensors]

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return back(projected_tensors, params)


class MergeDims(ProjectionBase):
    r"""Runs modules on tensors whose adjacent dimensions are merged up to a maximal size.

    From the first dimension on, a dimension is merged into the previous one if their product is at
    most `max_size`. Dimensions of size 1 are removed. With ``max_size=100`` the shape ``(8, 3, 5,
    5)`` becomes ``(24, 25)``; a 0-d tensor becomes ``(1,)``. So methods that keep a matrix for each
    dimension (Shampoo, SOAP) keep fewer and larger ones.

    Args:
        modules: The modules to run on the merged tensors.
        max_size: The largest size of a merged dimension, at least 1. Default 10000, as in the
            authors' code of SOAP.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If `max_size` is below 1.

    Cost: none for contiguous tensors, else a copy. Elementwise modules run outside, at no cost.
    Differs from the authors' code: supports empty tensors.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> kernel = torch.nn.Conv2d(3, 8, 5).weight
        >>> optimizer = Optimizer([kernel], MergeDims([Muon()], max_size=100), LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter  shape          dtype    group  inside   state bytes
        ---------  -------------  -------  -----  -------  -----------
        0          8 x 3 x 5 x 5  float32  0      24 x 25  2,400

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (SOAP); the rule is of their code.
    """

    scope = "tensor"
    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        max_size: int = 10000,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require(self, "max_size", max_size, minimum=1)
        self.max_size = max_size
        super().__init__(modules, project_update, project_params, project_grad)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return [tensor.reshape(merge_dims(tensor.shape, self.max_size)) for tensor in tensors]

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return back(projected_tensors, params)


class Permute(ProjectionBase):
    r"""Runs modules on tensors with permuted dimensions.

    Inside, dimension :math:`i` is dimension ``dims[i]`` outside. Tensors of other numbers of
    dimensions pass unchanged to the same modules.

    Args:
        modules: The modules to run on the permuted tensors.
        dims: Each dimension once; ``(1, 0)`` transposes matrices.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If `dims` is not a permutation; when the optimizer is built, if no tensor has
            as many dimensions.

    Cost: none; tensors inside are views. Elementwise modules run outside.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> kernel = torch.nn.ConvTranspose2d(3, 8, 5).weight  # the first dimension is the input
        >>> inner = Permute([Reshape([Muon()], (None, -1))], (1, 0, 2, 3))
        >>> optimizer = Optimizer([kernel], inner, LR(0.02))
    """

    scope = "tensor"
    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        dims: Sequence[int],
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        self.dims = as_tuple(dims)
        if not self.dims or set(self.dims) != set(range(len(self.dims))):
            raise ArgumentError(
                f"Permute was given dims={dims!r}. It must list each dimension once, from 0 on. "
                "Pass for example (1, 0) to transpose matrices."
            )
        self.inverse = tuple(self.dims.index(i) for i in range(len(self.dims)))
        super().__init__(modules, project_update, project_params, project_grad)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return tensor.ndim == len(self.dims)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return [tensor.permute(self.dims) for tensor in tensors]

    def unproject(
        self, projected_tensors: Iterable[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return [tensor.permute(self.inverse) for tensor in projected_tensors]


def merge_dims(shape: Sequence[int], max_size: int) -> tuple[int, ...]:
    """Merges adjacent dimensions as long as their product is at most `max_size`."""
    merged: list[int] = []
    current = 1
    for length in shape:
        if current * length > max_size and current != 1:
            merged.append(current)
            current = 1
        current *= length
    return (*merged, current) if current != 1 or not merged else tuple(merged)


def back(tensors: Iterable[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Reshapes tensors to the shapes of others."""
    return [tensor.reshape(same.shape) for tensor, same in zip(tensors, like, strict=True)]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
