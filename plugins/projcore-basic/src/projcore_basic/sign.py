"""Sign."""

from __future__ import annotations

from torch import Tensor

from projcore import Entries, Settings, Transform
from projcore.ops import as_given, as_real, signs


class Sign(Transform):
    r"""Returns the sign of each element of the update: :math:`u \leftarrow \operatorname{sign}(u)`.

    The sign of 0 is 0, and that of Inf and NaN is NaN, so that they are not hidden. The real and
    imaginary parts of complex numbers are replaced separately.

    Cost: two passes over the update.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = Optimizer([weight], Sign(), LR(0.5))  # signSGD
        >>> weight.grad = torch.tensor([3.0, 0.0, -0.1])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.5000,  0.0000,  0.5000])

    References:
        Bernstein et al., 2018, https://arxiv.org/abs/1802.04434 (algorithm 1).
    """

    scope = "element"

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
    ) -> list[Tensor]:
        return as_given(signs(as_real(tensors)), tensors)
