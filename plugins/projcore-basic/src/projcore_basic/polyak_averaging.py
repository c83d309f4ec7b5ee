"""Averages of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Observer, Settings, require, scalar
from projcore.ops import lerp_, once
from projcore_basic.averaging import Averaging


def average_(
    averages: list[Tensor], points: list[Tensor], counts: list[Tensor], beta: float | Tensor | None
) -> None:
    """Moves averages towards points, by weights that follow from the counts."""
    numbers = [scalar(count) for count in counts]
    weights = [1 / n for n in numbers] if beta is None else [1 - beta * (n > 1) for n in numbers]
    wide = [point.to(average.dtype) for point, average in zip(points, averages, strict=True)]
    lerp_(averages, wide, once(weights))


class PolyakAveraging(Observer, Averaging):
    r"""Keeps an average of the parameters; leaves the update as it is.

    With :math:`p_t` the parameters after step :math:`t = 1, 2, \dots`,

    .. math::
        \bar p_t = \beta \bar p_{t-1} + (1 - \beta) p_t
        \qquad \text{or} \qquad
        \bar p_t = \bar p_{t-1} + (p_t - \bar p_{t-1}) / t

    where the second, the mean of all, is for ``beta=None``; and :math:`\bar p_1 = p_1`. It is the
    average of `torch.optim.swa_utils.AveragedModel`, updated after each step, but is saved with the
    optimizer. `averages` returns it, and `averaged` copies it into the parameters for an
    evaluation. Averages of 16-bit parameters are kept in float32, since small changes would be lost
    in 16 bits.

    It comes last, since it averages the parameters after the step, and may be used only inside
    projections that rearrange or cast them; inside others it would average other tensors. Inside
    `To` with ``master=True`` it averages the master copies. Buffers, such as those of batch
    normalization, are not optimized: update them with `torch.optim.swa_utils.update_bn`.

    Args:
        beta: :math:`\beta`, at least 0 and less than 1; None for the mean.

    Raises:
        ArgumentError: If ``beta`` is out of range.

    Cost: one state tensor per parameter. Eager, 4 passes.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> from projcore_basic import averaged
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Optimizer([weight], LR(1.0), PolyakAveraging())
        >>> for _ in range(3):
        ...     weight.grad = -torch.ones(1)
        ...     optimizer.step()
        >>> weight.item()
        3.0
        >>> with averaged(optimizer):
        ...     weight.item()  # the mean of 1, 2 and 3
        2.0

    References:
        Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046 (the mean).
        Izmailov et al., 2018, https://arxiv.org/abs/1803.05407 (stochastic weight averaging).
    """

    scope = "element"
    kinds = {"average": "first", "step": "scalar"}
    kept = "average"

    def __init__(self, beta: float | None = None) -> None:
        super().__init__({"beta": beta})

    def check(self, settings: Settings) -> None:
        if settings["beta"] is not None:
            require(self, "beta", settings["beta"], minimum=0, below=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return {
            "average": torch.zeros_like(tensor, dtype=wide),
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def observe(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> None:
        counts = torch._foreach_add([state["step"] for state in states], 1)
        averages = [state["average"] for state in states]
        average_(averages, params, list(counts), scalar(settings[0]["beta"]))
        for state, count in zip(states, counts, strict=True):  # only after the average has changed
            state["step"] = count

    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        moved = bool(memory["step"] > 0)
        average: Tensor = memory["average"] if moved else parameter.detach()
        return average
