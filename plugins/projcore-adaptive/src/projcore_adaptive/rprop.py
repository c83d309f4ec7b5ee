"""Rprop."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import as_given, as_real


def rprop_update(
    tensors: list[Tensor],
    previous: list[Tensor],
    step_sizes: list[Tensor],
    etas: tuple[float | Tensor, float | Tensor],
    bounds: tuple[float | Tensor, float | Tensor],
) -> list[Tensor]:
    """Updates step sizes and previous gradients in place; returns ``sign(u) * step_size``."""
    agreements = torch._foreach_sign(torch._foreach_mul(tensors, previous))
    for tensor, before, size, agreement in zip(
        tensors, previous, step_sizes, agreements, strict=True
    ):
        changed = agreement < 0
        factor = torch.where(agreement > 0, etas[1], torch.ones_like(size))
        size.mul_(torch.where(changed, etas[0], factor))
        size.copy_(size.clamp(min=bounds[0]).clamp(max=bounds[1]))
        before.copy_(torch.where(changed, 0, tensor))
    return list(torch._foreach_mul(torch._foreach_sign(previous), step_sizes))


class Rprop(Transform):
    r"""Resilient backpropagation: steps by the sign, with a step size for each element.

    With :math:`u_-` the update of the previous step, 0 in the first, and :math:`\Delta` the step
    size, initially ``lr``,

    .. math::
        \Delta \leftarrow \operatorname{clip}(\Delta \cdot \begin{cases}
        \eta_+ & u u_- > 0 \\ \eta_- & u u_- < 0 \\ 1 & u u_- = 0 \end{cases},
        \Delta_{\min}, \Delta_{\max}), \quad
        u \leftarrow 0 \text{ where } u u_- < 0, \quad
        u_- \leftarrow u, \quad u \leftarrow \Delta \operatorname{sign} u

    The result is a step in units of the parameters: no `LR` follows. It is `torch.optim.Rprop`,
    exactly. It is meant for full batches. Complex numbers are pairs of real ones, as there, and NaN
    is treated as 0. When an outer projection changes its basis, the state is reinitialized, because
    step sizes of elements cannot be transported.

    Args:
        lr: The first step size, at least 0. Read once, when the state is created, as in torch:
            schedulers have no effect later.
        etas: :math:`\eta_-` between 0 and 1, and :math:`\eta_+` above 1.
        step_sizes: :math:`\Delta_{\min}` and :math:`\Delta_{\max}`, each at least 0.

    Raises:
        ArgumentError: If a setting is out of range.
        ArgumentTypeError: If ``etas`` or ``step_sizes`` is not a pair of numbers.

    Cost: two state tensors per parameter. Eager, 15 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Rprop(lr=0.01))

    References:
        Riedmiller & Braun, 1993, https://doi.org/10.1109/ICNN.1993.298623 (without going back a
        step where the sign changes, as in torch).
    """

    scope = "element"
    kinds = {"prev": "opaque", "step_size": "opaque"}

    def __init__(
        self,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
    ) -> None:
        super().__init__({"lr": lr, "etas": etas, "step_sizes": step_sizes})

    def check(self, settings: Settings) -> None:
        require(self, "lr", settings["lr"], minimum=0)
        for name in ("etas", "step_sizes"):
            pair = settings[name]
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ArgumentTypeError(
                    f"Rprop({name}={pair!r}) is not valid. It must be a pair of numbers, the "
                    "smaller first. Pass for example etas=(0.5, 1.2)."
                )
        require(self, "etas[0]", settings["etas"][0], above=0, below=1)
        require(self, "etas[1]", settings["etas"][1], above=1)
        require(self, "step_sizes[0]", settings["step_sizes"][0], minimum=0)
        lowest = scalar(settings["step_sizes"][0])
        require(self, "step_sizes[1]", settings["step_sizes"][1], minimum=lowest)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        lr = float(settings["lr"])
        size = complex(lr, lr) if tensor.is_complex() else lr
        return {"prev": torch.zeros_like(tensor), "step_size": torch.full_like(tensor, size)}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        etas, bounds = settings[0]["etas"], settings[0]["step_sizes"]
        result = rprop_update(
            as_real(tensors),
            as_real([state["prev"] for state in states]),
            as_real([state["step_size"] for state in states]),
            (scalar(etas[0]), scalar(etas[1])),
            (scalar(bounds[0]), scalar(bounds[1])),
        )
        return as_given(result, tensors)
