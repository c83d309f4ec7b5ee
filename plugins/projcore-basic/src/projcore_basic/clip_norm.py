"""Clipping by norm."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, common, require
from projcore.ops import norms, require_choice, times
from projcore_basic._norms import (
    Nonfinite,
    Order,
    as_order,
    refuse_nonfinite,
    whole_norm,
)

# As in torch's clip_grad_norm_, so a norm of exactly `max_norm` is scaled down slightly, too.
TINY = 1e-6


def clip_each(tensors: list[Tensor], max_norm: float | Tensor, each: list[Tensor]) -> list[Tensor]:
    """Scales each tensor, or each item of a batch, by its own factor."""
    inverses = torch._foreach_reciprocal(torch._foreach_add(each, TINY))
    factors = torch._foreach_clamp_max(torch._foreach_mul(inverses, max_norm), 1.0)
    return list(torch._foreach_mul(tensors, factors))


class ClipNorm(Transform):
    r"""Clips the norm of the update.

    .. math::
        u \leftarrow u \cdot \min\left(1, \frac{c}{\lVert u \rVert + 10^{-6}}\right)

    The norm is that of all tensors together, as in `torch.nn.utils.clip_grad_norm_`, or of each
    tensor with ``per_tensor``. As in torch, an infinite norm turns finite elements into zeros and
    infinite ones into NaN, unless ``nonfinite`` says otherwise.

    Args:
        max_norm: :math:`c`, greater than 0.
        norm_type: The order of the norm, greater than 0, or ``"inf"`` for the largest magnitude;
            fixed: parameter groups cannot override it.
        per_tensor: Whether to clip the norm of each tensor separately.
        nonfinite: The treatment of Inf and NaN in a norm: ``"allow"`` does nothing, ``"raise"``
            raises an error, and ``"skip"`` skips the step, with nothing changed. Fixed. Put the
            module first, since modules before it may already have updated their state. Unless it is
            ``"allow"``, the module waits for the device and is not compiled.

    Raises:
        ArgumentError: If ``max_norm`` or ``norm_type`` is out of range, ``nonfinite`` is unknown,
            or parameter groups differ in ``max_norm`` without ``per_tensor``.
        NonFiniteError: In a step, if a norm is not finite and ``nonfinite="raise"``.

    Cost: two passes over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Optimizer([weight], ClipNorm(1.0), LR(1.0))
        >>> weight.grad = torch.tensor([3.0, -4.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.6000,  0.8000])

    References:
        Pascanu, Mikolov & Bengio, 2013, https://arxiv.org/abs/1211.5063 (algorithm 1).
    """

    sharded = True

    def __init__(
        self,
        max_norm: float,
        norm_type: Order = 2.0,
        per_tensor: bool = False,
        nonfinite: Nonfinite = "allow",
    ) -> None:
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        self.nonfinite: Nonfinite = nonfinite
        self.traceable = nonfinite == "allow"
        self.order = as_order(self, "norm_type", norm_type)
        self.scope = "tensor" if per_tensor else "all"
        super().__init__({"max_norm": max_norm})

    def check(self, settings: Settings) -> None:
        require(self, "max_norm", settings["max_norm"], above=0)

    def common_factor(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> Tensor | None:
        if self.scope == "tensor":
            return None
        if not tensors:
            return torch.ones((), device="cpu")
        norm = whole_norm(tensors, self.order)
        refuse_nonfinite(self, [norm], self.nonfinite)
        factor: Tensor = (common(self, settings)["max_norm"] / (norm + TINY)).clamp(max=1.0)
        return factor

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        if self.scope == "tensor":
            each = norms(tensors, batch_dims, self.order)
            refuse_nonfinite(self, each, self.nonfinite)
            return clip_each(tensors, settings[0]["max_norm"], each)
        factor = self.common_factor(tensors, params, grads, loss, states, settings)
        assert factor is not None
        return times(tensors, factor)
