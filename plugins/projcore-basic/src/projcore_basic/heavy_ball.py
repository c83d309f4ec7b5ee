"""Momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentError
from projcore.ops import add_scaled


def heavy_ball_update(
    tensors: list[Tensor],
    buffers: list[Tensor],
    steps: list[Tensor],
    momentum: float | Tensor,
    dampening: float | Tensor,
    nesterov: bool,
) -> list[Tensor]:
    """Updates momentum and counts in place; returns the momentum, or Nesterov's combination."""
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(buffers, momentum)
    if isinstance(dampening, Tensor) or dampening != 0:
        # The first update enters in full.
        factors = [1 - dampening * (scalar(step) > 1) for step in steps]
        torch._foreach_add_(buffers, torch._foreach_mul(tensors, factors))
    else:
        torch._foreach_add_(buffers, tensors)
    return add_scaled(tensors, buffers, momentum) if nesterov else buffers


class HeavyBall(Transform):
    r"""Accumulates momentum.

    .. math::
        b \leftarrow \mu b + (1 - \tau) u, \qquad u \leftarrow b

    except that :math:`b \leftarrow u` in the first step, without dampening. Nesterov's variant
    returns :math:`u + \mu b`. Followed by `LR` it is `torch.optim.SGD`, up to rounding; torch's
    ``weight_decay`` is `WeightDecay` before this module.

    Args:
        momentum: :math:`\mu`, at least 0 and at most 1.
        dampening: :math:`\tau`, at least 0 and at most 1. It applies for every :math:`\mu`; torch's
            has no effect if ``momentum`` is 0.
        nesterov: Whether to use Nesterov's momentum; needs ``momentum`` above 0 and no dampening.
            Fixed: parameter groups cannot override it.

    Raises:
        ArgumentError: If a setting is out of range, or ``nesterov`` is combined with dampening or
            without momentum.

    Cost: one state tensor per parameter. Eager, 2 passes; 3 with ``dampening`` or ``nesterov``.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), HeavyBall(0.9, nesterov=True), LR(0.1))

    References:
        Polyak, 1964, https://doi.org/10.1016/0041-5553(64)90137-5.
        Sutskever et al., 2013, https://proceedings.mlr.press/v28/sutskever13.html (Nesterov).
    """

    scope = "element"
    kinds = {"momentum_buffer": "first", "step": "scalar"}

    def __init__(
        self, momentum: float = 0.9, dampening: float = 0.0, nesterov: bool = False
    ) -> None:
        self.nesterov = nesterov
        super().__init__({"momentum": momentum, "dampening": dampening})

    def check(self, settings: Settings) -> None:
        momentum, dampening = settings["momentum"], settings["dampening"]
        require(self, "momentum", momentum, minimum=0, maximum=1)
        require(self, "dampening", dampening, minimum=0, maximum=1)
        if self.nesterov and not (momentum > 0 and dampening == 0):
            raise ArgumentError(
                f"HeavyBall(momentum={momentum!r}, dampening={dampening!r}, nesterov=True) is not "
                "defined. Nesterov's momentum needs a momentum above 0 and no dampening. Pass "
                "dampening=0, or nesterov=False."
            )

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "momentum_buffer": torch.zeros_like(tensor),
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
        return heavy_ball_update(
            tensors,
            [state["momentum_buffer"] for state in states],
            [state["step"] for state in states],
            scalar(settings[0]["momentum"]),
            scalar(settings[0]["dampening"]),
            self.nesterov,
        )
