"""Adam's bias correction as a separate module."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, scalar
from projcore.ops import once
from projcore_adaptive._betas import require_betas


class BiasCorrection(Transform):
    r"""Multiplies the update by :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.

    This is the factor that `Adam` omits with ``bias_correction=False``; :math:`t` counts steps from
    1. Modules between the two, such as a limit on the growth of the norm, see the uncorrected
    update.

    Args:
        betas: :math:`\beta_1, \beta_2` of that Adam, each at least 0 and less than 1. Both modules
            have this setting, so in parameter groups it is qualified by position, as
            ``"0.modules.0.betas"`` and ``"1.betas"``: change both together. Schedulers that cycle
            ``"betas"``, such as `torch.optim.lr_scheduler.OneCycleLR`, raise an error; pass them
            ``cycle_momentum=False``.

    Raises:
        ArgumentError: If a beta is out of range.
        ArgumentTypeError: If ``betas`` is not a pair.

    Cost: one pass over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> adam = [Adam(eps=0.0, bias_correction=False), BiasCorrection()]
        >>> optimizer = Optimizer([weight], *adam, LR(0.1))
        >>> weight.grad = torch.tensor([1.0, -2.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.1000,  0.1000])

    References:
        Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980 (before section 2.1).
    """

    scope = "element"
    kinds = {"step": "scalar"}

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__({"betas": betas})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"step": torch.zeros((), dtype=torch.int64, device="cpu")}

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        if states:
            torch._foreach_add_([state["step"] for state in states], 1)
        beta1, beta2 = (scalar(beta) for beta in settings[0]["betas"])
        counts = [scalar(state["step"]) for state in states]
        return [((1 - beta2**t) ** 0.5 / (1 - beta1**t), 0.0) for t in counts]

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        factors = [factor for factor, _ in self.coefficients(states, settings)]
        return list(torch._foreach_mul(tensors, once(factors)))
