"""Updates that are tangent to spheres."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import ProjectionBase, Settings


class TangentSphere(ProjectionBase):
    r"""Runs modules on the components of updates that are orthogonal to their parameters.

    With :math:`p` a parameter and :math:`\langle a, b \rangle` the sum over all elements (for
    complex ones, over real and imaginary parts),

    .. math:: T u = u - \frac{\langle u, p \rangle}{\langle p, p \rangle} p

    both on the way in and on the way out. So for any modules inside, the resulting update is
    tangent to the sphere around 0 through the parameter: it rotates the parameter, and changes its
    norm only to second order in the step. So training cannot stall by lowering the loss through
    scaling alone ("naive loss minimization"). Shapes are the same inside as outside; :math:`T` is
    an orthogonal projector, symmetric with :math:`T T = T`, so the component along :math:`p` is
    lost.

    Points inside are relative to the parameter, which is :math:`T p = 0`, and a closure inside is
    evaluated at :math:`p + T z`. Modules that need the parameter itself, such as weight decay,
    belong outside. A parameter that is 0 has no direction, and its update passes unchanged. So do
    tensors of fewer than two elements, whose tangents are all 0.

    Args:
        modules: The modules to run on the tangents.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Cost: five passes each way. Sums of bfloat16 and float16 are computed in float32.
    Differs from the authors' code: theirs projects only the gradient, and then restores its norm;
    here the result of the modules is projected, too.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
        >>> optimizer = Optimizer([weight], TangentSphere([LR(0.5)]))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 2., -2.])

    References:
        Prieto et al., 2025, https://arxiv.org/abs/2501.04697 (there :math:`\perp`\ Grad; also
        known as OrthoGrad).
    """

    scope = "tensor"
    needs = frozenset({"params"})

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return tensor.numel() > 1

    def project(
        self, tensors: list[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return [tangent(tensor, param) for tensor, param in zip(tensors, params, strict=True)]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return self.project(list(projected_tensors), params)


def tangent(tensor: Tensor, param: Tensor) -> Tensor:
    """Returns the part of a tensor that is orthogonal to a parameter."""
    u, p = _real(tensor), _real(param)
    norm = torch.linalg.vector_norm(p)
    unit = p / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    result: Tensor = u - (u * unit).sum() * unit
    if tensor.is_complex():
        result = torch.view_as_complex(result)
    return result.to(tensor.dtype)


def _real(tensor: Tensor) -> Tensor:
    """Returns a tensor as real numbers of at least 32 bits."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
