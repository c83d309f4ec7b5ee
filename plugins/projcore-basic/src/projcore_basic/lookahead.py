"""Lookahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore_basic.averaging import Averaging


class Lookahead(Transform, Averaging):
    r"""Interpolates slow weights towards the parameters every few steps, and resets these to them.

    With :math:`\phi` the slow weights, at first the parameters, after each `period` steps

    .. math::
        \phi \leftarrow \phi + \alpha (p - u - \phi), \qquad u \leftarrow p - \phi

    and in the other steps the update is unchanged. It comes last, after the learning rate, since
    its result must be subtracted unchanged: ``Adam(), LR(lr), Lookahead()``. The state of the
    modules before it is kept when the parameters are reset. `averages` returns the slow weights,
    and `averaged` copies them into the parameters for an evaluation. For 16-bit parameters, slow
    weights are kept in float32.

    Args:
        alpha: :math:`\alpha`, at least 0 and at most 1.
        period: Steps between two interpolations, at least 1.

    Raises:
        ArgumentError: If a setting is out of range.
        ArgumentTypeError: If ``period`` is not an integer.

    Cost: one state tensor per parameter. Eager, 4 passes every `period` steps; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Optimizer([weight], LR(1.0), Lookahead(0.5, period=2))
        >>> for _ in range(2):
        ...     weight.grad = -torch.ones(1)
        ...     optimizer.step()
        >>> weight.item()  # half the way to 2
        1.0

    References:
        Zhang et al., 2019, https://arxiv.org/abs/1907.08610 (algorithm 1).
    """

    comes_last = True
    scope = "element"
    needs = frozenset({"params"})
    kinds = {"slow": "first", "step": "scalar"}
    kept = "slow"

    def __init__(self, alpha: float = 0.5, period: int = 5) -> None:
        super().__init__({"alpha": alpha, "period": period})

    def check(self, settings: Settings) -> None:
        require(self, "alpha", settings["alpha"], minimum=0, maximum=1)
        require(self, "period", settings["period"], minimum=1)
        if not isinstance(settings["period"], int):
            raise ArgumentTypeError(
                f"Lookahead(period={settings['period']!r}) was given a "
                f"{type(settings['period']).__name__}. period must be an integer."
            )

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return {
            "slow": torch.zeros_like(tensor, dtype=wide),
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
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
        assert params is not None
        alpha, period = scalar(settings[0]["alpha"]), scalar(settings[0]["period"])
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        counts = [scalar(step) for step in steps]
        slow = [state["slow"] for state in states]
        start_(slow, params, counts)
        update = list(tensors)
        flags = [count % period == 0 for count in counts]
        traced = isinstance(flags[0], Tensor)
        places = [i for i, flag in enumerate(flags) if traced or flag]
        if not places:
            return update
        chosen = [slow[i] for i in places]
        points = [params[i].to(slow[i].dtype) for i in places]
        ahead = [tensors[i].to(slow[i].dtype) for i in places]
        moves = list(torch._foreach_sub(torch._foreach_sub(points, ahead), chosen))
        torch._foreach_mul_(moves, alpha)
        if traced:
            moves = [torch.where(flag, move, 0.0) for flag, move in zip(flags, moves, strict=True)]
        torch._foreach_add_(chosen, moves)
        for i, each in zip(places, torch._foreach_sub(points, chosen), strict=True):
            back = each.to(tensors[i].dtype)
            update[i] = torch.where(flags[i], back, tensors[i]) if traced else back
        return update

    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        slow: Tensor = memory["slow"] if memory["step"] > 0 else parameter.detach()
        return slow


def start_(targets: list[Tensor], params: list[Tensor], counts: list[Any]) -> None:
    """Copies parameters into targets in the first step, where the count is 1."""
    if isinstance(counts[0], Tensor):
        first = [torch.where(count == 1, 1.0, 0.0) for count in counts]
        wide = [param.to(target.dtype) for param, target in zip(params, targets, strict=True)]
        for target, param, weight in zip(targets, wide, first, strict=True):
            target.lerp_(param, weight.to(target.dtype))
        return
    places = [i for i, count in enumerate(counts) if count == 1]
    if places:
        torch._foreach_copy_([targets[i] for i in places], [params[i] for i in places])
