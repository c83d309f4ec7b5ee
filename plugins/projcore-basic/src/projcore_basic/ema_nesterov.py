"""EMA-Nesterov."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore_basic.averaging import Averaging


class EMANesterov(Transform, Averaging):
    r"""Evaluates gradients ahead of the iterate, along the moving average of its steps.

    With :math:`x` the iterate, :math:`p = x + \gamma m` the point at which the gradient is
    evaluated, and :math:`u` the update of the modules before it,

    .. math::
        x' = p - u, \qquad
        m \leftarrow \beta m + (1 - \beta) (x' - x), \qquad
        p \leftarrow x' + \gamma m

    Nesterov's method looks ahead along the last step; the average is less noisy. It comes last,
    after the learning rate, since its result must be subtracted unchanged: ``AdamW(), LR(lr),
    EMANesterov()``. The parameters are :math:`p`; `averages` returns :math:`x`, and `averaged`
    copies it into the parameters for an evaluation, or at the end of training.

    The authors scale :math:`\gamma` by the learning rate relative to its maximum, and do not look
    ahead in the first and the last steps: schedule the group's ``lookahead`` along with ``lr``, 0
    at both ends. Then the parameters are :math:`x` at the end.

    Args:
        lookahead: :math:`\gamma`, at least 0.
        beta: :math:`\beta`, at least 0 and less than 1.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: one state tensor per parameter. Eager, 5 passes; compiled, one pass. It does not read the
    parameters. Differs from the authors' code: the previous iterate follows from the average, and
    is not kept.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> from projcore_basic import averaged
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Optimizer([weight], LR(1.0), EMANesterov(0.5, beta=0.0))
        >>> weight.grad = -torch.ones(1)
        >>> optimizer.step()
        >>> weight.item()  # a step of 1, and half of it ahead
        1.5
        >>> with averaged(optimizer):
        ...     weight.item()
        1.0

    References:
        Yau et al., 2026, https://arxiv.org/abs/2605.25395 (algorithm 1).
    """

    comes_last = True
    scope = "element"
    kinds = {"exp_avg": "first", "ahead": "scalar"}
    kept = "exp_avg"

    def __init__(self, lookahead: float = 0.5, beta: float = 0.99) -> None:
        super().__init__({"lookahead": lookahead, "beta": beta})

    def check(self, settings: Settings) -> None:
        require(self, "lookahead", settings["lookahead"], minimum=0)
        require(self, "beta", settings["beta"], minimum=0, below=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "exp_avg": torch.zeros_like(tensor),
            "ahead": torch.zeros((), dtype=torch.float64, device="cpu"),
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
        lookahead, beta = scalar(settings[0]["lookahead"]), scalar(settings[0]["beta"])
        exp_avgs = [state["exp_avg"] for state in states]
        # The step from one iterate to the next is the former look-ahead minus the update.
        kept = [beta + (1 - beta) * scalar(state["ahead"]) for state in states]
        torch._foreach_mul_(exp_avgs, kept)
        torch._foreach_sub_(exp_avgs, torch._foreach_mul(tensors, 1 - beta))
        for state in states:
            state["ahead"] = as_number(lookahead)
        return list(torch._foreach_sub(tensors, torch._foreach_mul(exp_avgs, lookahead)))

    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        ahead: Tensor = memory["exp_avg"] * memory["ahead"].item()
        return parameter.detach() - ahead


def as_number(value: float | Tensor) -> Tensor:
    """Returns a number as a new 0-d float64 tensor, as it is kept in the state."""
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float64, copy=True)
    return torch.tensor(value, dtype=torch.float64, device="cpu")
