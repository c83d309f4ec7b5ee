"""What becomes of the full update when only a part of it went through the subspace.

Each rule makes an update ``G * factor + U z`` of the full update ``G``, of what it is inside,
``R = U^H G``, and of what the modules returned, ``N``: so that no residual need be formed. For a
projection from the left there is a factor for each column, from the right one for each row.
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
    full: Tensor,
    projected: Tensor,
    result: Tensor,
    dim: int,
    scale: float,
    gamma: float | None,
    previous: Tensor | None,
) -> tuple[Parts, Tensor | None]:
    r"""Scales each channel of the residual as the modules inside scaled it in the subspace.

    .. math:: \alpha U N + S, \quad S = (G - \alpha U R) \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`S` limited. Its norm follows from those of :math:`G` and
    :math:`R`, since :math:`U` is orthonormal: :math:`\lVert S_j \rVert^2 = \phi_j^2 (\lVert G_j
    \rVert^2 - (2 \alpha - \alpha^2) \lVert R_j \rVert^2)`.
    """
    inside = norms(projected, dim)
    factor = norms(result, dim) / (inside + TINY)
    squares = norms(full, dim).square() - (2 * scale - scale**2) * inside.square()
    norm = (squares.clamp_min(0) * factor.square()).sum((-2, -1), keepdim=True).sqrt()
    shrink, limited = limit(norm, gamma, previous)
    factor = (factor * shrink).to(full.dtype)
    return Parts(result - projected * factor, scale, factor), limited


def apollo(
    full: Tensor,
    projected: Tensor,
    result: Tensor,
    dim: int | tuple[int, int],
    scale: float,
    gamma: float | None,
    previous: Tensor | None,
) -> tuple[Parts, Tensor | None]:
    r"""Scales the full update, by channel or as a whole, as the modules did in the subspace.

    .. math:: \alpha G \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the norm of :math:`G \operatorname{diag}(\phi)` limited, before :math:`\alpha`.
    """
    factor = norms(result, dim) / (norms(projected, dim) + TINY)
    limited = None
    if gamma is not None:
        norm = (norms(full, dim) * factor).square().sum((-2, -1), keepdim=True).sqrt()
        shrink, limited = limit(norm, gamma, previous)
        factor = factor * shrink
    return Parts(factor=(scale * factor).to(full.dtype)), limited


def norms(tensor: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """Returns norms along dimensions, which stay with length 1, in float32 or wider."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    result: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True, dtype=wide)
    return result


def limit(
    norm: Tensor, gamma: float | None, previous: Tensor | None
) -> tuple[Tensor | float, Tensor | None]:
    r"""Returns the factor that keeps a norm from growing by more than :math:`\gamma`, and the norm.

    Nothing is limited by a norm of zero before: otherwise all updates after it would be zero, too.
    """
    if gamma is None or previous is None:
        return 1.0, None
    allowed = torch.where(previous > 0, gamma * (previous + TINY), norm)
    shrink = torch.where(norm > allowed, allowed / norm, 1.0)
    return shrink, norm * shrink
