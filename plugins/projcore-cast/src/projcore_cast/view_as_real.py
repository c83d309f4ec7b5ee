"""Complex tensors as pairs of real numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import ProjectionBase


class ViewAsReal(ProjectionBase):
    r"""Runs modules on complex tensors viewed as real ones; real tensors are untouched.

    A complex tensor of shape ``(*s)`` is inside a real one of shape ``(*s, 2)``, real and imaginary
    part last. The map is orthonormal for the inner product :math:`\mathrm{Re}\langle x, y\rangle`,
    which is the one that torch's complex gradients stand in: real optimizers inside do what torch's
    own do with complex parameters.

    Args:
        modules: What to run on the real tensors.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Cost: none, they are views (but for conjugate and non-contiguous tensors).

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        >>> optimizer = Optimizer([weight], ViewAsReal([Adam()]), LR(0.01))

    References:
        torchzero's `ViewAsReal` has the same interface; torch.optim views complex parameters so.
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
    """Views pairs as complex numbers; copies those that do not lie in memory as pairs."""
    pairs = pairs.contiguous()  # which leaves strides of dimensions of one element as they are
    if pairs.storage_offset() % 2 or any(stride % 2 for stride in pairs.stride()[:-1]):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)
