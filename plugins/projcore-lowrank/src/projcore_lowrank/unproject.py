"""Rules that use the result inside alone, with the residual, or with its signs."""

from __future__ import annotations

import torch

from projcore_lowrank.combine import Combine, Given, Terms


class Unproject(Combine):
    r"""The unprojected result of the modules inside: :math:`\alpha P N`.

    Args:
        scale: :math:`\alpha`, above 0. A setting.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, combine=Unproject(scale=0.25)))
        subspace([adam()], rank=4, combine=unproject(scale=0.25))
    """

    def terms(self, given: Given) -> list[Terms]:
        return list(map(Terms, given.result, given.setting("scale")))


class Residual(Combine):
    r"""The unprojected result plus the residual: :math:`\alpha P N + \rho (G - P R)`.

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        residual_scale: :math:`\rho`, at least 0. A setting.
        match_rms: Whether to multiply :math:`\alpha` by :math:`0.2 \sqrt{\max(m, n)}`, so that an
            orthogonal :math:`N` gives a step with the RMS of Adam's, as in SUMO.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, combine=Residual(residual_scale=0.5)))
        subspace([adam()], rank=4, combine=residual(residual_scale=0.5))

    References:
        Hao et al., 2024, https://arxiv.org/abs/2402.03293; `match_rms`: Refael et al., 2025,
        https://arxiv.org/abs/2505.24749 (section 3.2).
    """

    stacked = True

    def __init__(
        self, scale: float = 1.0, residual_scale: float = 1.0, match_rms: bool = False
    ) -> None:
        self.match_rms = match_rms
        super().__init__(scale)
        self.defaults["residual_scale"] = residual_scale

    def terms(self, given: Given) -> list[Terms]:
        scales, factors = given.setting("scale"), given.setting("residual_scale")
        if self.match_rms:
            sizes = [0.2 * max(shape[-2:]) ** 0.5 for shape in given.shapes]
            scales = [scale * size for scale, size in zip(scales, sizes, strict=True)]
        low = torch._foreach_mul(given.result, scales)
        torch._foreach_sub_(low, list(torch._foreach_mul(given.projected, factors)))
        return [Terms(each, factor=factor) for each, factor in zip(low, factors, strict=True)]


class SignResidual(Residual):
    r"""The result plus the residual's signs: :math:`\alpha P N + \rho\operatorname{sign}(G - P R)`.

    Args:
        scale: :math:`\alpha`, above 0. A setting.
        residual_scale: :math:`\rho`, at least 0. A setting.

    Cost: a temporary tensor of the parameter's size, for one parameter at a time.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, combine=SignResidual(residual_scale=0.1)))
        subspace([adam()], rank=4, combine=sign_residual(residual_scale=0.1))

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (FRUGAL, algorithm 1).
    """

    orthonormal = True

    def __init__(self, scale: float = 1.0, residual_scale: float = 1.0) -> None:
        super().__init__(scale, residual_scale)

    def terms(self, given: Given) -> list[Terms]:
        found = zip(
            given.result, given.setting("scale"), given.setting("residual_scale"), strict=True
        )
        return [Terms(low, scale, signs=signs) for low, scale, signs in found]
