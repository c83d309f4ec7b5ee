"""Fira: the residual, scaled as the modules inside scaled the subspace."""

from __future__ import annotations

import torch

from projcore_lowrank.combine import Given, Limited, Terms, quotients, with_residuals


class Fira(Limited):
    r"""Scales each channel of the residual as the modules inside scaled it in the subspace.

    .. math:: \alpha P N + S, \quad S = (G - \alpha P R) \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the growth of the norm of :math:`S` limited. It follows from the norms of :math:`G` and
    :math:`R`, since :math:`P` is orthonormal: :math:`\lVert S_j \rVert^2 = \phi_j^2 (\lVert G_j
    \rVert^2 - (2 \alpha - \alpha^2) \lVert R_j \rVert^2)`. Channels are columns if matrices are
    compressed from the left, else rows.

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        limit: The maximum growth factor of the norm of :math:`S` in a step, at least 1; None for no
            limit.

    Differs from the authors' code: a zero norm does not limit the next step.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, combine=Fira(scale=0.25)))
        subspace([adam()], rank=4, combine=fira(scale=0.25))

    References:
        Chen et al., 2024, https://arxiv.org/abs/2410.01623 (equations 4 to 7).
    """

    orthonormal = True
    by_channel = True
    measures = True

    def terms(self, given: Given) -> list[Terms]:
        scales = given.setting("scale")
        inside = self.norms(given.projected, given.dims)
        factors = quotients(self.norms(given.result, given.dims), inside)
        rest = torch._foreach_mul(inside, inside)
        torch._foreach_mul_(rest, [scale**2 - 2 * scale for scale in scales])
        torch._foreach_addcmul_(rest, given.outside, given.outside)
        rest = torch._foreach_clamp_min(rest, 0.0)
        torch._foreach_sqrt_(rest)
        sizes = list(torch._foreach_mul(rest, factors))
        factors = self.limited(factors, sizes, given)
        return with_residuals(given, factors, factors, scales)
