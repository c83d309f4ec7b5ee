"""Weight decay."""

from __future__ import annotations

from torch import Tensor

from projcore import Node, Settings, Transform, require, scalar
from projcore_basic._foreach import add_scaled


class WeightDecay(Transform):
    r"""Adds the parameters to the update: :math:`u \leftarrow u + \lambda p`.

    Whether the decay is coupled or decoupled is a matter of where in the chain it stands, so there
    is no argument for it:

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

    Without a module with memory, as in ``WeightDecay(w), LR(lr)``, the first two are the same.

    Args:
        weight_decay: :math:`\lambda`, at least 0.

    Raises:
        ArgumentError: If ``weight_decay`` is negative or NaN.

    Cost: one pass over the update and the parameters; none, eager, where it is 0.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> decayed = {"params": [model.weight], "weight_decay": 0.1}
        >>> plain = {"params": [model.bias]}
        >>> optimizer = Optimizer([decayed, plain], Adam(), WeightDecay(0.0), LR(1e-3))

    References:
        Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101 (algorithms 1 and 2).
    """

    scope = "element"
    needs = frozenset({"params"})

    def __init__(self, weight_decay: float = 0.01) -> None:
        super().__init__({"weight_decay": weight_decay})

    def check(self, settings: Settings) -> None:
        require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        assert params is not None
        weight_decay = scalar(settings[0]["weight_decay"])
        if not isinstance(weight_decay, Tensor) and weight_decay == 0:
            return tensors
        return add_scaled(tensors, params, weight_decay)
