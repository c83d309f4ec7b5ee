"""Lion."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from projcore import Blend, Entries, Settings, Transform, Write, Writer, blended, scalar
from projcore.ops import as_given, as_real, lerp_, signs
from projcore_adaptive._betas import require_betas
from projcore_adaptive._matrices import batches

# Elements of parameters that are written together, or one parameter: so many fit a cache of a CPU;
# elsewhere, this bounds the memory of a step.
CPU_BLOCK = 1 << 18
BLOCK = 1 << 27


def lion_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
) -> list[Tensor]:
    """Updates the momentum in place; returns the sign of the interpolation before that.

    Where the momentum is not finite, neither is the interpolation, whose sign would hide that.
    """
    mixed = torch._foreach_mul(exp_avgs, beta1)
    lerp_(exp_avgs, tensors, 1 - beta2)
    if isinstance(beta1, Tensor):
        torch._foreach_add_(mixed, torch._foreach_mul(tensors, 1 - beta1))
    else:
        torch._foreach_add_(mixed, tensors, alpha=1 - beta1)
    torch._foreach_sign_(mixed)
    torch._foreach_add_(mixed, exp_avgs, alpha=0)  # 0 times Inf or NaN is NaN
    return list(mixed)


class Lion(Transform):
    r"""Returns the sign of an interpolation between momentum and update.

    .. math::
        u' = \operatorname{sign}(\beta_1 m + (1 - \beta_1) u), \quad
        m \leftarrow \beta_2 m + (1 - \beta_2) u

    Each element of the result is -1, 0 or 1, so learning rates are 3 to 10 times smaller than
    Adam's. The published decay is decoupled: ``Lion(), WeightDecay(0.1), LR(1e-4)``. Complex
    numbers are treated as pairs of real ones. The sign of Inf and NaN is NaN, so that they are not
    hidden.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.

    Raises:
        ArgumentError: If ``betas`` are out of range.

    Cost: one state tensor per parameter. Eager, 6 passes; compiled, one pass. Where it writes the
    parameters itself, their update is never in memory as a whole.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, WeightDecay
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Lion(), WeightDecay(0.1), LR(1e-4))

    References:
        Chen et al., 2023, https://arxiv.org/abs/2302.06675 (algorithm 2).
    """

    scope = "element"
    kinds = {"exp_avg": "first"}

    def __init__(self, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__({"betas": betas})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"exp_avg": torch.zeros_like(tensor)}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        beta1, beta2 = settings[0]["betas"]
        result = lion_update(
            as_real(tensors),
            as_real([state["exp_avg"] for state in states]),
            scalar(beta1),
            scalar(beta2),
        )
        return as_given(result, tensors)

    def writer(self, targets: list[Tensor]) -> Writer:
        return LionWriter()


class LionWriter(Writer):
    """Writes some parameters after the other, and then their momentum."""

    kernel = "Lion, some parameters after the other"

    def __call__(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Write]:
        beta1, beta2 = map(scalar, settings[0]["betas"])
        lists = as_real(targets), as_real(tensors), as_real([each["exp_avg"] for each in states])
        most = CPU_BLOCK if targets[0].device.type == "cpu" else BLOCK
        writes = []
        for places in batches(targets, [None] * len(targets), most):
            some, update, exp_avgs = ([each[i] for i in places] for each in lists)
            how = [blends[i] for i in places]
            write = partial(write_lion_, some, update, exp_avgs, beta1, how)
            writes.append(Write(some[0], write))
            writes.append(Write(exp_avgs[0], partial(lerp_, exp_avgs, update, 1 - beta2)))
        return writes


def write_lion_(
    targets: list[Tensor],
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    beta1: float,
    blends: list[Blend],
) -> None:
    """Writes parameters by the update of `lion_update`; the momentum is unchanged."""
    mixed = list(torch._foreach_mul(exp_avgs, beta1))
    torch._foreach_add_(mixed, tensors, alpha=1 - beta1)
    for write in blended(targets, signs(mixed), blends):
        write.run()
