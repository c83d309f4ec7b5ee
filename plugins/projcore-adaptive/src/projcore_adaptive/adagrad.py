"""Adagrad."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import as_given, as_real


def adagrad_update(
    tensors: list[Tensor],
    sums: list[Tensor],
    steps: list[Tensor],
    lr_decay: float | Tensor,
    eps: float | Tensor,
) -> list[Tensor]:
    """Updates the sums and counts in place; returns ``u / (sqrt(s) + eps) / (1 + (t-1) decay)``."""
    torch._foreach_add_(steps, 1)
    torch._foreach_addcmul_(sums, tensors, tensors, 1)
    denominators = torch._foreach_sqrt(sums)
    torch._foreach_add_(denominators, eps)
    if isinstance(lr_decay, Tensor) or lr_decay != 0:
        counts = [scalar(step) for step in steps]
        torch._foreach_mul_(denominators, [1 + (count - 1) * lr_decay for count in counts])
    return list(torch._foreach_div(tensors, denominators))


class Adagrad(Transform):
    r"""Divides the update by the root of the sum of its squares.

    With :math:`t` counting steps from 1,

    .. math::
        s \leftarrow s + u^2, \quad
        u \leftarrow \frac{1}{1 + (t - 1) \delta} \cdot \frac{u}{\sqrt{s} + \epsilon}

    The first factor is the effect of ``lr_decay``, as the learning rate is in `LR`. Followed by
    `LR` this is `torch.optim.Adagrad`, up to rounding; torch's ``weight_decay`` is `WeightDecay`
    before this module. Complex numbers are treated as pairs of real ones, as in torch.

    Args:
        lr_decay: :math:`\delta`, at least 0.
        initial_accumulator_value: :math:`s` before the first step, at least 0; fixed: parameter
            groups cannot override it.
        eps: :math:`\epsilon`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: one state tensor per parameter. Eager, 4 passes, 5 with ``lr_decay``; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adagrad(), LR(1e-2))

    References:
        Duchi, Hazan & Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html (diagonal form).
    """

    scope = "element"
    kinds = {"sum": "second", "step": "scalar"}

    def __init__(
        self,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        require(self, "initial_accumulator_value", initial_accumulator_value, minimum=0)
        self.initial_accumulator_value = initial_accumulator_value
        super().__init__({"lr_decay": lr_decay, "eps": eps})

    def check(self, settings: Settings) -> None:
        require(self, "lr_decay", settings["lr_decay"], minimum=0)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        value: complex = self.initial_accumulator_value
        if tensor.is_complex():
            value = complex(value.real, value.real)
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "sum": torch.full_like(tensor, value),
        }

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        result = adagrad_update(
            as_real(tensors),
            as_real([state["sum"] for state in states]),
            [state["step"] for state in states],
            scalar(settings[0]["lr_decay"]),
            scalar(settings[0]["eps"]),
        )
        return as_given(result, tensors)
