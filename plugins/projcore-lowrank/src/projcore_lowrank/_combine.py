"""What becomes of the full update when only a part of it went through the subspace.

Each rule makes an update ``G * factor + U z`` of the full update ``G``, of what it is inside,
``R = U^H G``, and of what the modules returned, ``N``: so that no residual need be formed. For a
projection from the left there is a factor for each column, from the right one for each row.

The rules take lists: numbers for all tensors are then computed in a few operations.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

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


def fira(
    full: list[Tensor],
    projected: list[Tensor],
    result: list[Tensor],
    dims: list[int | None],
    scales: list[float],
    gamma: float | None,
    previous: list[Tensor],
) -> tuple[list[Parts], list[Tensor]]:
    r"""Scales each channel of the residual as the modules inside scaled it in the subspace.

    .. math:: \alpha U N + S, \quad S = (G - \alpha U R) \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`S` limited. Its norm follows from those of :math:`G` and
    :math:`R`, since :math:`U` is orthonormal: :math:`\lVert S_j \rVert^2 = \phi_j^2 (\lVert G_j
    \rVert^2 - (2 \alpha - \alpha^2) \lVert R_j \rVert^2)`.

    Args:
        full: :math:`G`, matrices or batches of them.
        projected: :math:`R`.
        result: :math:`N`.
        dims: The dimension along which a channel lies.
        scales: :math:`\alpha`.
        gamma: How much the norm of :math:`S` may grow; None for no limit.
        previous: The norms before, for ``gamma``.

    Returns:
        The parts of each update, and the new norms.
    """
    inside = norms(projected, dims)
    factors = quotients(norms(result, dims), inside)
    rest = torch._foreach_mul(inside, inside)
    torch._foreach_mul_(rest, [scale**2 - 2 * scale for scale in scales])
    outside = norms(full, dims)
    torch._foreach_addcmul_(rest, outside, outside)
    rest = torch._foreach_clamp_min(rest, 0.0)
    torch._foreach_sqrt_(rest)
    factors, limited = limit(factors, list(torch._foreach_mul(rest, factors)), gamma, previous)
    factors = _like(factors, full)
    low = torch._foreach_addcmul(result, projected, factors, value=-1.0)
    return [Parts(*each) for each in zip(low, scales, factors, strict=True)], limited


def apollo(
    full: list[Tensor],
    projected: list[Tensor],
    result: list[Tensor],
    dims: list[int | None],
    scales: list[float],
    gamma: float | None,
    previous: list[Tensor],
) -> tuple[list[Parts], list[Tensor]]:
    r"""Scales the full update, by channel or as a whole, as the modules did in the subspace.

    .. math:: \alpha G \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`G \operatorname{diag}(\phi)` limited, before :math:`\alpha`. Arguments
    as of `fira`; a dimension of None is the whole matrix.
    """
    factors = quotients(norms(result, dims), norms(projected, dims))
    if gamma is not None:
        scaled = list(torch._foreach_mul(norms(full, dims), factors))
        factors, previous = limit(factors, scaled, gamma, previous)
    factors = _like(list(torch._foreach_mul(factors, scales)), full)
    return [Parts(factor=factor) for factor in factors], previous


RULES = {"fira": fira, "apollo": apollo, "apollo_mini": apollo}


def norms(tensors: list[Tensor], dims: list[int | None]) -> list[Tensor]:
    """Returns norms along dimensions, which stay with length 1, in float32 or wider.

    None is for both dimensions of a matrix.
    """
    if all(dim is None and tensor.ndim == 2 for tensor, dim in zip(tensors, dims, strict=True)):
        wide = [tensor.to(_wide(tensor)) for tensor in tensors]
        return [norm.reshape(1, 1) for norm in torch._foreach_norm(wide)]
    return [_norm(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]


def _norm(tensor: Tensor, dim: int | None) -> Tensor:
    if dim == -2 and tensor.device.type == "cpu":
        # Along columns torch's own takes six times as long.
        parts = tensor.abs() if tensor.is_complex() else tensor.to(_wide(tensor))
        return (parts * parts).sum(-2, keepdim=True).sqrt_()
    along = (-2, -1) if dim is None else dim
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=along, keepdim=True, dtype=_wide(tensor))
    return norm


def quotients(above: list[Tensor], below: list[Tensor]) -> list[Tensor]:
    """Returns how much modules have scaled what they were given."""
    return list(torch._foreach_div(above, torch._foreach_add(below, TINY)))


def limit(
    factors: list[Tensor], channels: list[Tensor], gamma: float | None, previous: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Shrinks factors so that the norm of all channels grows by no more than `gamma`.

    Nothing is limited by a norm of zero before: otherwise all updates after it would be zero, too.

    Returns:
        The factors, and the norms that there are with them.
    """
    if gamma is None:
        return factors, previous
    counts = [before.numel() for before in previous]  # of matrices in a batch
    if all(count == 1 for count in counts):
        now = torch.stack(list(torch._foreach_norm(channels)))
    else:
        now = torch.cat([_norm(channel, None).reshape(-1) for channel in channels])
    before = torch.cat([norm.reshape(-1) for norm in previous])
    allowed = torch.where(before > 0, gamma * (before + TINY), now)
    shrink = torch.where(now > allowed, allowed / now, 1.0)
    shapes = [norm.shape for norm in previous]
    shrinks = _split(shrink, counts, shapes)
    return list(torch._foreach_mul(factors, shrinks)), _split(now * shrink, counts, shapes)


def _split(numbers: Tensor, counts: list[int], shapes: list[torch.Size]) -> list[Tensor]:
    """Returns a part of the numbers for each tensor, with memory of its own."""
    parts = zip(numbers.split(counts), shapes, strict=True)
    return [part.clone().reshape(shape) for part, shape in parts]


def _like(factors: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    return [factor.to(like.dtype) for factor, like in zip(factors, tensors, strict=True)]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
