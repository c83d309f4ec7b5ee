"""What becomes of the full update when only a part of it went through the subspace.

Each rule makes an update ``G * factor + U z`` of the full update ``G``, of what it is inside,
``R = U^H G``, and of what the modules returned, ``N``: so that no residual need be formed. For a
projection from the left there is a factor for each column, from the right one for each row.

The rules take lists: numbers for all tensors are then computed in a few operations.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from projcore import ops

Rule = Literal["unproject", "residual", "sign", "fira", "apollo", "apollo_mini"]
TINY = 1e-8  # beside the norm that is divided by; as in the authors' codes


class Parts(NamedTuple):
    """An update: ``scale * U low + full * factor + signs * sign(full - U projected)``.

    What is None, or 0, is left out.
    """

    low: Tensor | None = None
    scale: float = 1.0
    factor: Tensor | float | None = None
    signs: float = 0.0


class Given(NamedTuple):
    r"""What the rules go by, of matrices or batches of them that share a dtype and a device.

    The matrices are called :math:`G`.

    Attributes:
        outside: The norms of the channels of :math:`G`; for `apollo_mini` those of the
            matrices, as vectors; not used without ``gamma``, except by `fira`.
        projected: :math:`R`.
        result: :math:`N`; for `apollo_mini` each by itself.
        dims: The dimension along which a channel lies.
        scales: :math:`\alpha`.
        gamma: How much the norm of what is scaled may grow; None for no limit.
        previous: The norms before, for ``gamma``: of each matrix, or of each batch that came so.
    """

    outside: list[Tensor]
    projected: list[Tensor]
    result: list[Tensor]
    dims: list[int]
    scales: list[float]
    gamma: float | None
    previous: list[Tensor]


def fira(given: Given) -> tuple[list[Parts], list[Tensor]]:
    r"""Scales each channel of the residual as the modules inside scaled it in the subspace.

    .. math:: \alpha U N + S, \quad S = (G - \alpha U R) \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`S` limited. Its norm follows from those of :math:`G` and
    :math:`R`, since :math:`U` is orthonormal: :math:`\lVert S_j \rVert^2 = \phi_j^2 (\lVert G_j
    \rVert^2 - (2 \alpha - \alpha^2) \lVert R_j \rVert^2)`.

    Returns:
        The parts of each update, and the new norms.
    """
    outside, projected, result, dims, scales, gamma, previous = given
    inside = norms(projected, dims)
    factors = quotients(norms(result, dims), inside)
    rest = torch._foreach_mul(inside, inside)
    torch._foreach_mul_(rest, [scale**2 - 2 * scale for scale in scales])
    torch._foreach_addcmul_(rest, outside, outside)
    rest = torch._foreach_clamp_min(rest, 0.0)
    torch._foreach_sqrt_(rest)
    channels = list(torch._foreach_mul(rest, factors))
    if gamma is not None:
        shrink, previous = limit(matrix_norms(channels), gamma, previous)
        factors = list(torch._foreach_mul(factors, _parted(shrink, result)))
    factors = _like(factors, result)
    mixed = torch._foreach_addcmul(result, projected, factors, value=-1.0)
    low = [each.to(out.dtype) for each, out in zip(mixed, result, strict=True)]
    return [Parts(*each) for each in zip(low, scales, factors, strict=True)], previous


def apollo(given: Given) -> tuple[list[Parts], list[Tensor]]:
    r"""Scales each channel of the full update as the modules did in the subspace.

    .. math:: \alpha G \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`G \operatorname{diag}(\phi)` limited, before :math:`\alpha`.
    """
    outside, projected, result, dims, scales, gamma, previous = given
    factors = quotients(norms(result, dims), norms(projected, dims))
    if gamma is not None:
        channels = list(torch._foreach_mul(outside, factors))
        shrink, previous = limit(matrix_norms(channels), gamma, previous)
        factors = list(torch._foreach_mul(factors, _parted(shrink, result)))
    if any(map(is_factor, scales)):
        factors = list(torch._foreach_mul(factors, scales))
    return [Parts(factor=factor) for factor in _like(factors, result)], previous


def apollo_mini(given: Given) -> tuple[list[Parts], list[Tensor]]:
    r"""Scales the full update as a whole: as `apollo`, where all of a matrix is one channel."""
    outside, projected, result, _, scales, gamma, previous = given
    numbers = matrix_norms(result) / (matrix_norms(projected) + TINY)
    if gamma is not None:
        shrink, previous = limit(torch.cat(outside) * numbers, gamma, previous)
        numbers = numbers * shrink
    factors = _like(list(torch._foreach_mul(_parted(numbers, projected), scales)), projected)
    return [Parts(factor=factor) for factor in factors], previous


RULES = {"fira": fira, "apollo": apollo, "apollo_mini": apollo_mini}


def has_signs(parts: Parts) -> bool:
    """Whether the signs of the residual are added; a tensor, as in a trace, may be any number."""
    return isinstance(parts.signs, Tensor) or bool(parts.signs)


def is_factor(factor: float | Tensor) -> bool:
    """Whether multiplying by a factor changes anything; a tensor, as in a trace, may."""
    return isinstance(factor, Tensor) or factor != 1


def signs(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the sign of each element; NaN of one that is not finite, so that it shows."""
    if any(tensor.is_complex() for tensor in tensors):
        return [tensor.sgn().add_(tensor, alpha=0) for tensor in tensors]
    return ops.signs(tensors)


def norms(tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """Returns norms along dimensions, which stay with length 1, in float32 or wider."""
    return [_norm(tensor, dim) for tensor, dim in zip(_wide(tensors), dims, strict=True)]


def _norm(tensor: Tensor, dim: int) -> Tensor:
    if dim == -2 and tensor.is_cpu:
        # Along columns torch's own takes six times as long.
        parts = tensor.abs() if tensor.is_complex() else tensor
        return (parts * parts).sum(-2, keepdim=True).sqrt_()
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return norm


def matrix_norms(tensors: list[Tensor]) -> Tensor:
    """Returns the norm of each matrix, those of batches one after the other, as a vector."""
    matrices = [
        matrix
        for tensor in _wide(tensors)
        for matrix in (tensor.flatten(0, -3).unbind() if tensor.ndim > 2 else (tensor,))
    ]
    return torch.stack(torch._foreach_norm(matrices))


def norms_of(tensor: Tensor) -> Tensor:
    """Returns the norm of a matrix, or of each of a batch, as a vector."""
    (tensor,) = _wide([tensor])
    if tensor.ndim == 2 and tensor.is_contiguous() and not tensor.is_complex():
        flat = tensor.view(-1)
        return torch.dot(flat, flat).sqrt_().view(1)  # for a large one the fastest on a CPU
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=(-2, -1))
    return norms.view(-1)


def quotients(above: list[Tensor], below: list[Tensor]) -> list[Tensor]:
    """Returns how much modules have scaled what they were given."""
    return list(torch._foreach_div(above, torch._foreach_add(below, TINY)))


def limit(now: Tensor, gamma: float, previous: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Finds by what to multiply matrices so that their norms grow by at most `gamma`.

    Nothing is limited by a norm of zero before: otherwise all updates after it would be zero, too.

    Args:
        now: The norm of each matrix.
        gamma: As said.
        previous: The norms before, of each matrix or batch.

    Returns:
        The factors, one for each matrix, and the norms that there are with them.
    """
    before = torch.cat([norm.view(-1) for norm in previous])
    allowed = (before + TINY).mul_(gamma).masked_fill_(before <= 0, math.inf)
    shrink = (allowed / now).clamp_(max=1.0)
    # Each in memory of its own.
    return shrink, list(torch._foreach_mul(_parted(now, previous), _parted(shrink, previous)))


def _parted(numbers: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Splits a vector of a number for each matrix, into shapes that broadcast with tensors."""
    if all(tensor.ndim == 2 for tensor in tensors):
        return list(numbers.view(-1, 1, 1).unbind())
    shapes = [(*tensor.shape[:-2], 1, 1) for tensor in tensors]
    counts = [math.prod(shape) for shape in shapes]
    parts = numbers.split(counts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _like(factors: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Returns factors in the dtype that the tensors share; but float16 does not hold all."""
    dtype = tensors[0].dtype
    if dtype in (torch.float16, factors[0].dtype):
        return factors
    return [factor.to(dtype) for factor in factors]


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    """Returns tensors, which share a dtype, in float32 or wider."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tensors if tensors[0].dtype == dtype else [tensor.to(dtype) for tensor in tensors]
