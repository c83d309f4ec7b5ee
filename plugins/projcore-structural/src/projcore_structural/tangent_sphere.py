"""Updates that do not scale what they update."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import ProjectionBase, Settings


class TangentSphere(ProjectionBase):
    r"""Runs modules on updates orthogonal to their parameters: tangents of spheres around 0.

    With :math:`p` a parameter and :math:`\langle a, b \rangle` the sum over all its elements (of
    complex ones, over real and imaginary parts),

    .. math:: T u = u - \frac{\langle u, p \rangle}{\langle p, p \rangle} p

    both on the way in and on the way out. So whatever runs inside, the update that leaves is
    orthogonal to its parameter: it turns the parameter, and does not scale it but for the square of
    the step. A loss that falls by scaling alone thus cannot stall training ("naive loss
    minimization"). Tensors are as large inside as outside; :math:`T` is an orthogonal projector,
    symmetric with :math:`T T = T`, so the map loses the component along :math:`p`.

    Points inside are relative to the parameter: it is :math:`T p = 0`, and a closure inside is
    evaluated at :math:`p + T z`. What is to see or scale the parameter itself, as weight decay,
    belongs outside. A parameter that is 0 has no direction: its update passes whole. Tensors of
    fewer than two elements, whose tangents are all 0, pass as they are.

    Args:
        modules: What to run on the tangents.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Cost: five passes over what crosses, each way. Of bfloat16 and float16, sums are in float32.
    Differs from the authors' code: theirs projects the gradient alone, and then gives it back the
    norm that it had; here the update out of the modules is a tangent too.

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
    """The real numbers in a tensor, of 32 bits at least."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
