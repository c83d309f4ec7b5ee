"""Complex tensors as pairs of real numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import ProjectionBase


class ViewAsReal(ProjectionBase):
    r"""Runs modules on complex tensors viewed as real ones; real tensors are unchanged.

    A complex tensor of shape ``(*s)`` is viewed as a real one of shape ``(*s, 2)``, with real and
    imaginary part in the last dimension. The map is orthonormal for the inner product
    :math:`\mathrm{Re}\langle x, y\rangle`, with respect to which torch defines complex gradients:
    real optimizers inside treat complex parameters as torch's own do.

    Args:
        modules: Modules to run on the real tensors.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Cost: none, since tensors are viewed, except for conjugate and non-contiguous ones.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        >>> optimizer = Optimizer([weight], ViewAsReal([Adam()]), LR(0.01))

    References:
        torchzero's `ViewAsReal` has the same interface; torch.optim views complex parameters in the
        same way.
    """

    scope = "element"
    geometry = "pointwise"

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return [
            torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
            for tensor in tensors
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return [
            _as_complex(tensor) if param.is_complex() else tensor
            for tensor, param in zip(projected_tensors, params, strict=True)
        ]


def _as_complex(pairs: Tensor) -> Tensor:
    """Views pairs as complex numbers; copies tensors whose strides do not allow it."""
    pairs = pairs.contiguous()  # does not change the strides of dimensions of one element
    if pairs.storage_offset() % 2 or any(stride % 2 for stride in pairs.stride()[:-1]):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)
