"""Schedule-free learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import as_given, as_real, once
from projcore_basic.averaging import Averaging
from projcore_basic.ema_nesterov import as_number
from projcore_basic.lookahead import start_


def schedule_free_update(
    tensors: list[Tensor],
    params: list[Tensor],
    points: list[Tensor],
    weights: list[Any],
    lr: Any,
    beta: Any,
) -> list[Tensor]:
    """Moves the iterates in place; returns the updates of the parameters.

    Args:
        tensors: The updates, `u`.
        params: The points at which gradients are evaluated, `y`.
        points: The iterates, `z`.
        weights: The weight of each new iterate in its average, `c`.
        lr: The learning rate.
        beta: The interpolation of `y` between iterate and average.
    """
    update = torch._foreach_sub(params, points)
    torch._foreach_mul_(update, once(weights))
    lengths = once([lr * (1 - beta * (1 - weight)) for weight in weights])
    torch._foreach_add_(update, torch._foreach_mul(tensors, lengths))
    torch._foreach_sub_(points, torch._foreach_mul(tensors, lr))
    return list(update)


class ScheduleFree(Transform, Averaging):
    r"""Schedule-free learning: averages the iterates in place of decaying the learning rate.

    With :math:`y` the parameters, at which gradients are evaluated, and `u` the update of the
    modules before it,

    .. math::
        z \leftarrow z - \eta u, \qquad
        x \leftarrow (1 - c) x + c z, \qquad
        y \leftarrow (1 - \beta) z + \beta x

    where all three start at the parameters, and :math:`c = \eta_{\max}^2 / \sum \eta_{\max}^2`,
    with :math:`\eta_{\max}` the largest learning rate so far. So :math:`x` is a mean of the
    iterates that weights those of a warmup less; with a constant learning rate :math:`c = 1 / t`.
    **No** `LR` **follows**: the learning rate is a setting of this module. It needs a warmup, but
    no decay.

    =======================  =======================================================================
    Schedule-free SGD        ``WeightDecay(w), ScheduleFree(lr=1.0)``
    Schedule-free AdamW      ``Adam((0.0, 0.999)), WeightDecay(w), ScheduleFree(lr=0.0025)``
    =======================  =======================================================================

    The parameters are :math:`y`; the model to evaluate is :math:`x`: `averages` returns it, and
    `averaged` copies it into the parameters. The statistics of batch normalization must be
    recomputed there. For 16-bit parameters, :math:`z` is kept in float32.

    Args:
        lr: :math:`\eta`, at least 0.
        beta: :math:`\beta`, above 0 and less than 1.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: one state tensor per parameter. Eager, 7 passes; compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, WeightDecay
        >>> from projcore_basic import averaged
        >>> model = torch.nn.Linear(3, 2)
        >>> modules = Adam((0.0, 0.999)), WeightDecay(0.1), ScheduleFree(lr=0.0025)
        >>> optimizer = Optimizer(model.parameters(), *modules)
        >>> with averaged(optimizer):
        ...     output = model(torch.ones(3))

    References:
        Defazio et al., 2024, https://arxiv.org/abs/2405.15682 (algorithm 1, equations 3 to 5; the
        weights are those of its code).
    """

    comes_last = True
    scope = "element"
    needs = frozenset({"params"})
    kinds = {
        "point": "first",
        "lr_max": "scalar",
        "weight_sum": "scalar",
        "beta": "scalar",
        "step": "scalar",
    }
    kept = "point"

    def __init__(self, lr: float = 1.0, beta: float = 0.9) -> None:
        super().__init__({"lr": lr, "beta": beta})

    def check(self, settings: Settings) -> None:
        require(self, "lr", settings["lr"], minimum=0)
        require(self, "beta", settings["beta"], above=0, below=1)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "point": torch.zeros_like(tensor, dtype=wide),
            "lr_max": as_number(0.0),
            "weight_sum": as_number(0.0),
            "beta": as_number(0.0),
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
        lr, beta = scalar(settings[0]["lr"]), scalar(settings[0]["beta"])
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        points = [state["point"] for state in states]
        start_(points, params, [scalar(step) for step in steps])
        weights = [self.weight(state, lr) for state in states]
        for state in states:
            state["beta"] = as_number(beta)
        wide = points[0].dtype
        result = schedule_free_update(
            as_real([tensor.to(wide) for tensor in tensors]),
            as_real([param.to(wide) for param in params]),
            as_real(points),
            weights,
            lr,
            beta,
        )
        return [
            each.to(tensor.dtype)
            for each, tensor in zip(as_given(result, points), tensors, strict=True)
        ]

    def weight(self, state: Entries, lr: Any) -> Any:
        """Returns the weight of the next iterate in the average, and adds it to the sum."""
        largest: Any = scalar(state["lr_max"])
        total: Any = scalar(state["weight_sum"])
        if isinstance(largest, Tensor) or isinstance(lr, Tensor):
            largest = torch.maximum(torch.as_tensor(largest), torch.as_tensor(lr).double())
            total = total + largest**2
            weight: Any = torch.where(total > 0, largest**2 / total, 0.0)
        else:
            largest = max(largest, lr)
            total = total + largest**2
            weight = largest**2 / total if total > 0 else 0.0
        state["lr_max"], state["weight_sum"] = as_number(largest), as_number(total)
        return weight

    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        if memory["step"] == 0:
            return parameter.detach()
        beta = memory["beta"].item()
        point: Tensor = memory["point"]
        return torch.lerp(parameter.detach().to(point.dtype), point, 1 - 1 / beta)
