"""Cautious updates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform
from projcore.ops import as_given, as_real


def cautious_update(tensor: Tensor, grad: Tensor, batch_dims: int) -> Tensor:
    """Keeps the elements whose sign is the gradient's, rescaled by n over their number."""
    agree = tensor.sign() * grad.sign() > 0  # the product of the values could underflow
    dims = tuple(range(batch_dims, tensor.ndim))
    count = agree.sum(dims, keepdim=True) if dims else agree
    wide = torch.promote_types(tensor.dtype, torch.float32)
    factor = math.prod(tensor.shape[batch_dims:]) / (count.to(wide) + 1)
    return tensor * (agree * factor).to(tensor.dtype)


class Cautious(Transform):
    r"""Zeroes the elements of the update whose sign differs from the gradient's.

    .. math::
        \phi = [u g > 0], \qquad u \leftarrow u \, \phi \, \frac{n}{\sum \phi + 1}

    for each tensor of :math:`n` elements. The real and imaginary parts of complex numbers count as
    separate elements. Put it after modules with momentum, as in ``Adam(), Cautious(), LR(lr)``;
    applied to the gradient itself it only multiplies by :math:`n / (n + 1)`.

    Cost: about 6 passes over the update and the gradient.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adam(), Cautious(), LR(1e-3))

    References:
        Liang et al., 2024, https://arxiv.org/abs/2411.16085 (algorithm 1).
    """

    scope = "tensor"
    needs = frozenset({"grads"})

    def __init__(self) -> None:
        super().__init__()

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        assert grads is not None
        pairs = zip(as_real(tensors), as_real(grads), strict=True)
        return as_given([cautious_update(u, g, batch_dims) for u, g in pairs], tensors)
