"""Alice's rule: the residual, each channel divided by the running mean of its norm."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, require
from projcore_lowrank._batches import apart, pick, stacked
from projcore_lowrank.combine import TINY, Given, Limited, Terms, with_residuals


class Compensation(Limited):
    r"""The result inside, and the residual, each channel divided by its mean norm, as in Alice.

    .. math::
        \alpha (P N + \rho S), \quad
        S = \sqrt{m - r}\, (G - P R) \operatorname{diag}(p)^{-1/2}, \quad
        p_j \leftarrow \beta p_j + (1 - \beta) (\lVert G_j \rVert^2 - \lVert R_j \rVert^2)

    with the growth of the norm of :math:`S` limited. :math:`p` starts at zero, without bias
    correction. No residual is formed, since :math:`P` is orthonormal. Channels are columns, of
    length `m`, if matrices are compressed from the left, else rows.

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        residual_scale: :math:`\rho`, at least 0. A setting.
        beta: :math:`\beta`, at least 0 and less than 1. Fixed: parameter groups cannot override it.
        limit: The maximum growth factor of the norm of :math:`S` in a step, at least 1; None for no
            limit.

    Raises:
        ArgumentError: If an argument is out of range.

    Cost: one state element per channel.

    Differs from the paper: it divides by :math:`\max(p_j, \epsilon \lVert G_j \rVert^2)^{1/2} +
    10^{-8}` with the machine epsilon :math:`\epsilon`, so that residuals of rounding errors stay
    small; a zero norm does not limit the next step.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, combine=Compensation(scale=0.3)))
        subspace([adam()], rank=4, combine=compensation(scale=0.3))

    References:
        Gong et al., 2025, https://arxiv.org/abs/2502.07752 (section 5, optimal compensation).
    """

    kinds = {**Limited.kinds, "energies": "opaque"}
    orthonormal = True
    by_channel = True
    measures = True

    def __init__(
        self,
        scale: float = 1.0,
        residual_scale: float = 0.4,
        beta: float = 0.9,
        limit: float | None = 1.01,
    ) -> None:
        require(self, "beta", beta, minimum=0, below=1)
        self.beta = beta
        super().__init__(scale, limit)
        self.defaults["residual_scale"] = residual_scale

    def init(self, shape: tuple[int, ...], dim: int, tensor: Tensor) -> Entries:
        channels = list(shape)
        channels[dim] = 1
        wide = torch.promote_types(tensor.dtype, torch.float32).to_real()
        energies = tensor.new_zeros(channels, dtype=wide)
        return {"energies": energies, **super().init(shape, dim, tensor)}

    def terms(self, given: Given) -> list[Terms]:
        projected = given.projected
        factors, sizes = [], []
        parts = zip(given.batches, given.outside, self.norms(projected, given.dims), strict=True)
        for k, (batch, whole, inside) in enumerate(parts):
            rest = (whole.square() - inside.square()).clamp_(min=0)
            states, dim = pick(given.states, batch.places), given.dims[k]
            before = stacked([state["energies"] for state in states])
            energies = torch.lerp(before, rest, 1 - self.beta)
            for state, each in zip(states, apart(energies, len(states)), strict=True):
                state["energies"] = each
            missing = given.shapes[k][dim] - projected[k].shape[dim]
            rounding = whole.square() * torch.finfo(whole.dtype).eps
            divisor = torch.maximum(energies, rounding).sqrt() + TINY
            factors.append(missing**0.5 / divisor)
            sizes.append(rest.sqrt() * factors[-1])
        factors = self.limited(factors, sizes, given)
        shares = list(torch._foreach_mul(factors, given.setting("residual_scale")))
        scales = given.setting("scale")
        return with_residuals(given, shares, list(torch._foreach_mul(shares, scales)), scales)
