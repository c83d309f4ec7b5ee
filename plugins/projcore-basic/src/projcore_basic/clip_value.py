"""Clipping by value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Scope, Settings, Transform, common, require, scalar
from projcore.ops import as_given, as_real, require_choice
from projcore_basic._norms import Nonfinite, refuse_nonfinite


def clip_value_update(tensors: list[Tensor], limit: float | Tensor) -> list[Tensor]:
    """Clamps each element to the interval from ``-limit`` to ``limit``."""
    lowest: list[Any] = [-limit] * len(tensors)  # tensors in a trace, numbers otherwise
    highest: list[Any] = [limit] * len(tensors)
    clipped = torch._foreach_clamp_min(tensors, lowest)
    torch._foreach_clamp_max_(clipped, highest)
    return list(clipped)


class ClipValue(Transform):
    r"""Clamps each element of the update: :math:`u \leftarrow \min(\max(u, -c), c)`.

    The real and imaginary parts of complex numbers are clamped separately.

    Args:
        clip_value: :math:`c`, greater than 0.
        nonfinite: The treatment of Inf and NaN: with ``"allow"`` Inf becomes :math:`c` and NaN
            stays, ``"raise"`` raises an error, and ``"skip"`` skips the step, with nothing changed.
            Fixed. Put the module first, since modules before it may already have updated their
            state. Unless it is ``"allow"``, the module processes all tensors at once and is not
            compiled.

    Raises:
        ArgumentError: If ``clip_value`` is out of range, ``nonfinite`` is unknown, or parameter
            groups differ in ``clip_value`` while ``nonfinite`` is not ``"allow"``.
        NonFiniteError: In a step, if an element is not finite and ``nonfinite="raise"``.

    Cost: two passes over the update; a third, unless Inf and NaN are allowed.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Optimizer([weight], ClipValue(1.0), LR(0.5))
        >>> weight.grad = torch.tensor([3.0, -0.5])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.5000,  0.2500])

    References:
        `torch.nn.utils.clip_grad_value_` does the same in place.
    """

    scope: Scope = "element"
    sharded = True

    def __init__(self, clip_value: float, nonfinite: Nonfinite = "allow") -> None:
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        self.nonfinite: Nonfinite = nonfinite
        if nonfinite != "allow":
            self.scope = "all"  # no other module may run before all tensors are known to be finite
            self.traceable = False
        super().__init__({"clip_value": clip_value})

    def check(self, settings: Settings) -> None:
        require(self, "clip_value", settings["clip_value"], above=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        refuse_nonfinite(self, tensors, self.nonfinite)
        values = settings[0] if self.scope == "element" else common(self, settings)
        limit = scalar(values["clip_value"])
        return as_given(clip_value_update(as_real(tensors), limit), tensors)
