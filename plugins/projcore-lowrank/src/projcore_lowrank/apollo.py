"""APOLLO: the full update, scaled as the modules inside scaled the subspace."""

from __future__ import annotations

import torch

from projcore_lowrank.combine import Given, Limited, Terms, in_dtype_of, is_factor, quotients


class Apollo(Limited):
    r"""Scales each channel of the full update as the modules did in the subspace.

    .. math:: \alpha G \operatorname{diag}(\phi), \quad
        \phi_j = \lVert N_j \rVert / \lVert R_j \rVert

    with the growth of the norm of :math:`G \operatorname{diag}(\phi)` limited, before the factor
    :math:`\alpha`. Channels are columns if matrices are compressed from the left, else rows.

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        limit: The maximum growth factor of the norm in a step, at least 1; None for no limit.

    Differs from the authors' code: a zero norm does not limit the next step.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis="random_basis()", combine=Apollo(limit=None)))
        subspace([adam()], rank=4, basis=random_basis(), combine=apollo(limit=None))

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (algorithm 1).
    """

    by_channel = True

    def __init__(self, scale: float = 1.0, limit: float | None = 1.01) -> None:
        super().__init__(scale, limit)
        self.measures = limit is not None

    def terms(self, given: Given) -> list[Terms]:
        result, scales = given.result, given.setting("scale")
        inside = self.norms(given.projected, given.dims)
        factors = quotients(self.norms(result, given.dims), inside)
        if self.measures:
            sizes = list(torch._foreach_mul(given.outside, factors))
            factors = self.limited(factors, sizes, given)
        if any(map(is_factor, scales)):
            factors = list(torch._foreach_mul(factors, scales))
        return [Terms(factor=factor) for factor in in_dtype_of(factors, result)]


class ApolloMini(Apollo):
    r"""Scales the full update as a whole, as `Apollo` with each matrix as one channel.

    .. math:: \alpha \phi\, G, \quad \phi = \lVert N \rVert / \lVert R \rVert

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        limit: See `Apollo`.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=1, basis="random_basis()", combine=ApolloMini(8.0)))
        subspace([adam()], rank=1, basis=random_basis(), combine=apollo_mini(scale=8.0))

    References:
        Zhu et al., 2024, https://arxiv.org/abs/2412.05270 (section 4.2).
    """

    by_channel = False
