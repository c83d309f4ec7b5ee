"""APOLLO: the full update, scaled as the modules inside scaled the subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore_lowrank.combine import (
    TINY,
    Given,
    Limited,
    Terms,
    in_dtype_of,
    is_factor,
    matrix_norms,
    norms,
    norms_of,
    quotients,
    split_like,
)


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
        factors = quotients(norms(result, given.dims), norms(given.projected, given.dims))
        if self.limit is not None:
            channels = list(torch._foreach_mul(given.outside, factors))
            shrink = self.limited(matrix_norms(channels), given)
            factors = list(torch._foreach_mul(factors, split_like(shrink, result)))
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

    def measure(self, matrix: Tensor, dim: int) -> Tensor:
        return norms_of(matrix)

    def terms(self, given: Given) -> list[Terms]:
        projected = given.projected
        each = [given.results[i] for i in given.members]
        numbers = matrix_norms(each) / (matrix_norms(projected) + TINY)
        if self.limit is not None:
            shrink = self.limited(torch.cat(given.outside) * numbers, given)
            numbers = numbers * shrink
        factors = torch._foreach_mul(split_like(numbers, projected), given.setting("scale"))
        return [Terms(factor=factor) for factor in in_dtype_of(list(factors), projected)]
