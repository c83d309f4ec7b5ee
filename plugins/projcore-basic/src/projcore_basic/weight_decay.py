"""Weight decay."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentError
from projcore.ops import add_scaled, as_given, as_real


def agreeing(tensors: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Returns 0 for elements whose signs are opposite, and 1 for all others."""
    same = torch._foreach_sign(tensors)  # the product of the values could underflow
    torch._foreach_mul_(same, torch._foreach_sign(params))
    torch._foreach_add_(same, 1)
    torch._foreach_clamp_max_(same, 1)
    return list(same)


class WeightDecay(Transform):
    r"""Adds the parameters to the update: :math:`u \leftarrow u + \lambda p`; or their signs.

    With ``norm=2`` that is the gradient of :math:`\lambda \lVert p \rVert_2^2 / 2` (L2
    regularization), and with ``norm=1``, where :math:`u \leftarrow u + \lambda
    \operatorname{sign}(p)`, that of :math:`\lambda \lVert p \rVert_1` (L1); for complex numbers,
    the sign of each part. With ``norm=1`` parameters oscillate about zero by the length of a step,
    and few become exactly zero.

    The position in the chain decides whether the decay is coupled or decoupled:

    =====================================  ==================================================
    chain                                  the decay is
    =====================================  ==================================================
    ``WeightDecay(w), Adam(), LR(lr)``     coupled (L2 regularization): it enters the moments
                                           like a gradient, as ``torch.optim.Adam``'s
    ``Adam(), WeightDecay(w), LR(lr)``     decoupled: parameters become ``p * (1 - lr * w)``
                                           less ``lr * u``, as ``torch.optim.AdamW``'s
    ``Adam(), LR(lr), WeightDecay(w)``     decoupled, and independent of the learning rate:
                                           ``p * (1 - w)`` less ``lr * u``
    =====================================  ==================================================

    Without a module that has state, as in ``WeightDecay(w), LR(lr)``, the first two are the same.

    With ``cautious`` elements decay only where the update does not move them away from zero:
    :math:`u_i \leftarrow u_i + \lambda p_i \, [u_i p_i \ge 0]`. So decay never opposes the update,
    and minima of the loss are unchanged. Place it where decoupled decay goes.

    Args:
        weight_decay: :math:`\lambda`, at least 0.
        norm: 2 or 1; fixed: parameter groups cannot override it.
        cautious: Whether to decay only elements that the update does not increase in magnitude;
            fixed.

    Raises:
        ArgumentError: If ``weight_decay`` is negative or NaN, or ``norm`` is neither 1 nor 2.

    Cost: one pass over the update and the parameters, two with ``norm=1``, and 6 with ``cautious``;
    eager and with ``weight_decay=0``, none.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> decayed = {"params": [model.weight], "weight_decay": 0.1}
        >>> plain = {"params": [model.bias]}
        >>> optimizer = Optimizer([decayed, plain], Adam(), WeightDecay(0.0), LR(1e-3))

    References:
        Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101 (algorithms 1 and 2).
        Chen et al., 2025, https://arxiv.org/abs/2510.12402 (algorithm 1, cautious).
    """

    scope = "element"
    needs = frozenset({"params"})

    def __init__(
        self, weight_decay: float = 0.01, norm: Literal[1, 2] = 2, cautious: bool = False
    ) -> None:
        if norm not in (1, 2):
            raise ArgumentError(
                f"WeightDecay(norm={norm!r}) is not supported. Pass 2 to decay by the parameters "
                "(L2), or 1 to decay by their signs (L1)."
            )
        self.norm = norm
        self.cautious = cautious
        super().__init__({"weight_decay": weight_decay})

    def check(self, settings: Settings) -> None:
        require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]] | None:
        if self.norm != 2 or self.cautious:
            return None
        return [(1.0, scalar(settings[0]["weight_decay"]))] * len(states)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        assert params is not None
        weight_decay = scalar(settings[0]["weight_decay"])
        if not isinstance(weight_decay, Tensor) and weight_decay == 0:
            return tensors
        real = as_real(params)
        pull = list(torch._foreach_sign(real)) if self.norm == 1 else real
        if self.cautious:
            same = agreeing(as_real(tensors), real)
            torch._foreach_mul_(same, pull)
            pull = same
        return add_scaled(tensors, as_given(pull, params), weight_decay)
