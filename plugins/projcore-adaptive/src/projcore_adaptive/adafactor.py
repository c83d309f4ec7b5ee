"""Adafactor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import (
    by_parts,
    clamp_min_,
    copy_,
    lerp_,
    part_of,
    refuse_complex,
    splits,
    spread_zeros,
)
from projcore_adaptive._norms import lerp_mean_squares, root_mean_squares
from projcore_adaptive.adam import decay_


def factored_direction(
    tensors: list[Tensor],
    row_vars: list[Tensor],
    col_vars: list[Tensor],
    weights: list[Any],
    eps: list[Any],
) -> list[Tensor]:
    """Updates row and column means of the squares; divides by the roots of their products."""
    count = len(tensors)
    rows, columns = ([[tensor.ndim - i] for tensor in tensors] for i in (2, 1))
    found = lerp_mean_squares([*row_vars, *col_vars], tensors * 2, [*columns, *rows], weights * 2)
    row_means, col_means = found[:count], found[count:]  # (..., m, 1) and (..., 1, n)
    means = total_means(row_means, col_means, tensors)
    row_means = list(map(aligned, row_means, tensors, columns))
    col_means = list(map(aligned, col_means, tensors, rows))
    return by_parts(partial(factored_quotients, eps=eps), tensors, row_means, col_means, means)


def factored_quotients(
    tensors: list[Tensor],
    row_vars: list[Tensor],
    col_vars: list[Tensor],
    means: list[Tensor],
    eps: list[Any],
) -> list[Tensor]:
    """Divides by the roots of products of row and column means."""
    clamp_min_(means, eps)
    moments = torch._foreach_mul(torch._foreach_div(row_vars, means), col_vars)
    return quotients(tensors, list(moments), eps)


def total_means(
    row_means: list[Tensor], col_means: list[Tensor], tensors: list[Tensor]
) -> list[Tensor]:
    """Returns the means of row means; if these are sharded, the equal means of column means."""
    result = []
    for row_mean, col_mean, tensor in zip(row_means, col_means, tensors, strict=True):
        rows, columns = tensor.ndim - 2, tensor.ndim - 1
        complete = not splits(tensor, [rows]) or splits(tensor, [columns])
        total = row_mean.mean(rows, keepdim=True) if complete else col_mean.mean(-1, keepdim=True)
        result.append(aligned(total, tensor, [rows, columns]))
    return result


def aligned(average: Tensor, tensor: Tensor, over: list[int]) -> Tensor:
    """Returns what broadcasts to the part of a tensor that is here, of an average of all parts."""
    return average[part_of(tensor, over)] if splits(tensor, over) else average


def full_direction(
    tensors: list[Tensor], variances: list[Tensor], weights: list[Any], eps: list[Any]
) -> list[Tensor]:
    """Updates the means of the squares, and divides by their roots."""
    moments = list(torch._foreach_mul(tensors, tensors))
    lerp_(variances, moments, weights)
    copy_(moments, variances)
    return quotients(tensors, moments, eps)


def quotients(tensors: list[Tensor], moments: list[Tensor], eps: list[Any]) -> list[Tensor]:
    """Returns ``u / max(sqrt(v), eps)``, written over the moments."""
    clamp_min_(moments, [each * each for each in eps])
    torch._foreach_rsqrt_(moments)
    torch._foreach_mul_(moments, tensors)
    return moments


# How a tensor is divided depends on the entries of its state.
FORMS: dict[tuple[str, ...], Callable[..., list[Tensor]]] = {
    ("row_var", "col_var"): factored_direction,
    ("variance",): full_direction,
}


class Adafactor(Transform):
    r"""Divides by the root of a second moment that is factored into row and column means.

    For a matrix :math:`u` of shape ``(m, n)``, with :math:`t` counting steps from 1 and
    :math:`\beta = 1 - t^\tau`, :math:`R` of shape ``(m, 1)`` and :math:`C` of shape ``(1, n)``,

    .. math::
        R \leftarrow \beta R + (1 - \beta) \operatorname{mean}_{\text{columns}} u^2, \quad
        C \leftarrow \beta C + (1 - \beta) \operatorname{mean}_{\text{rows}} u^2, \quad
        V = \frac{R C}{\max(\operatorname{mean} R, \epsilon_1)}

    and :math:`V \leftarrow \beta V + (1 - \beta) u^2` itself for a vector or scalar. Tensors of
    more dimensions are stacks of matrices of the last two. Then

    .. math::
        U = \frac{u}{\max(\sqrt V, \epsilon_1)}, \quad
        \hat U = \frac{U}{\max(1, \operatorname{RMS}(U) / d)}, \quad
        u \leftarrow \min(\eta, 1 / \sqrt t) \max(\epsilon_2, \operatorname{RMS}(p)) \hat U
        + \eta \lambda p

    This is `torch.optim.Adafactor`, up to rounding: **no** `LR` **follows**, because the step is
    not a multiple of the learning rate; it is a setting of this module, which schedulers change.
    With ``lr=None`` the result is :math:`\hat U` alone, no parameters are needed, and `WeightDecay`
    and `LR` may follow: this is Adafactor with neither relative steps nor scaled parameters.

    Complex tensors raise an error, as in torch. When an outer projection changes its basis, the
    state is reinitialized, because row and column means cannot be transported.

    Args:
        lr: :math:`\eta`, at least 0, or None. With None there is no such setting.
        beta2_decay: :math:`\tau`, at most 0.
        eps: :math:`\epsilon_1`, at least 0, or None for the spacing of the tensor's dtype at 1; and
            :math:`\epsilon_2`, at least 0.
        d: The largest RMS of :math:`\hat U`, at least 1.
        weight_decay: :math:`\lambda`, at least 0; a setting only if there is an ``lr``.

    Raises:
        ArgumentError: If a setting is out of range, there is a ``weight_decay`` but no ``lr``, or
            a tensor is complex.
        ArgumentTypeError: If ``eps`` is not a pair.

    Cost: ``m + n`` numbers of state per matrix, one state tensor for a vector. Eager, 8 passes over
    the update, and one over the parameters.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adafactor(lr=1e-2))
        >>> optimizer = Optimizer(model.parameters(), Adafactor(lr=None), LR(1e-3))

    References:
        Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235 (algorithms 4 and 5; where
        :math:`\epsilon_1` acts, and :math:`\eta` for 0.01, are torch's).
    """

    scope = "tensor"
    sharded = True
    kinds = {"row_var": "opaque", "col_var": "opaque", "variance": "opaque", "step": "opaque"}

    def __init__(
        self,
        lr: float | None = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults: dict[str, Any] = {"beta2_decay": beta2_decay, "eps": eps, "d": d}
        if lr is not None:
            self.needs = frozenset({"params"})
            defaults |= {"lr": lr, "weight_decay": weight_decay}
        else:
            require("Adafactor(lr=None)", "weight_decay", weight_decay, minimum=0, maximum=0)
        super().__init__(defaults)

    def check(self, settings: Settings) -> None:
        require(self, "beta2_decay", settings["beta2_decay"], maximum=0)
        require(self, "d", settings["d"], minimum=1)
        eps = settings["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2:
            raise ArgumentTypeError(
                f"Adafactor(eps={eps!r}) is not valid. eps is a pair: a number or None, and a "
                "number. Pass for example eps=(None, 1e-3)."
            )
        if eps[0] is not None:
            require(self, "eps[0]", eps[0], minimum=0)
        require(self, "eps[1]", eps[1], minimum=0)
        if "lr" in settings:
            require(self, "lr", settings["lr"], minimum=0)
            require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        step = torch.zeros((), dtype=torch.int64, device="cpu")
        if tensor.ndim - batch_dims < 2:
            return {"step": step, "variance": torch.zeros_like(tensor)}
        rows, columns = tensor.ndim - 2, tensor.ndim - 1
        return {
            "step": step,
            "row_var": spread_zeros(tensor, [columns]),
            "col_var": spread_zeros(tensor, [rows]),
        }

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
        values = settings[0]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        counts = [scalar(step) for step in steps]
        eps1, eps2 = (None if each is None else scalar(each) for each in values["eps"])
        eps = [torch.finfo(tensor.dtype).eps if eps1 is None else eps1 for tensor in tensors]
        weights = [count ** scalar(values["beta2_decay"]) for count in counts]
        update = list(tensors)
        for names, direction in FORMS.items():
            places = [i for i, state in enumerate(states) if names[0] in state]
            if places:
                given, *others = ([each[i] for i in places] for each in (tensors, weights, eps))
                memory = ([states[i][name] for i in places] for name in names)
                for i, tensor in zip(places, direction(given, *memory, *others), strict=True):
                    update[i] = tensor
        found = root_mean_squares([*update, *(params or [])], batch_dims)
        ratios, lengths = found[: len(update)], found[len(update) :]
        torch._foreach_div_(ratios, scalar(values["d"]))
        clamp_min_(ratios, 1.0)
        if "lr" not in values:
            torch._foreach_div_(update, ratios)
            return update
        assert params is not None
        lr = scalar(values["lr"])
        clamp_min_(lengths, eps2)
        torch._foreach_mul_(lengths, [_smaller(lr, count**-0.5) for count in counts])
        torch._foreach_div_(lengths, ratios)
        torch._foreach_mul_(update, lengths)
        decay_(update, params, lr * scalar(values["weight_decay"]))
        return update


def _smaller(one: Any, other: Any) -> Any:
    return torch.minimum(one, other) if isinstance(one, Tensor) else min(one, other)
