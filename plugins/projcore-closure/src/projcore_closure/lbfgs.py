"""L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from projcore import Module, Objective, Settings, State, common, require
from projcore_closure._product import add_, dot, peaks, plus, scaled, size
from projcore_closure._rounding import rounding
from projcore_closure._whole import require_whole

Pair = tuple[list[Tensor], list[Tensor]]


def newest_upward(pairs: Sequence[Pair], point: list[Tensor]) -> tuple[float, float]:
    r"""Returns :math:`y^\top s` of the newest pair of positive curvature, and the loss's scale.

    The scale is estimated from curvature as :math:`\|x\|^2 y^\top y / y^\top s`. Both are 0 if
    there is no such pair.
    """
    for s, y in pairs:
        curvature = dot(y, s)
        if curvature > 0:
            return curvature, dot(y, y) / curvature * dot(point, point)
    return 0.0, 0.0


def two_loop(update: list[Tensor], pairs: Iterable[Pair], least: float) -> list[Tensor] | None:
    r"""Returns the L-BFGS inverse Hessian times the update, or None if no pair is used.

    Args:
        update: Vectors.
        pairs: Steps :math:`s` and changes of the gradient :math:`y`, the newest first. Only pairs
            with :math:`y^\top s > 0` are used, so that the inverse Hessian is positive definite.
        least: The smallest :math:`y^\top s` of a pair that is used.
    """
    result = [tensor.clone() for tensor in update]
    used: list[tuple[list[Tensor], list[Tensor], float, float]] = []
    for s, y in pairs:
        curvature = dot(y, s)
        if curvature > 0 and curvature >= least:
            alpha = dot(s, result) / curvature
            add_(result, y, -alpha)
            used.append((s, y, curvature, alpha))
    if not used:
        return None
    _, y, curvature, _ = used[0]
    result = scaled(result, curvature / dot(y, y))
    for s, y, curvature, alpha in reversed(used):
        add_(result, s, alpha - dot(y, result) / curvature)
    return result


def first_factor(update: list[Tensor], point: list[Tensor], rounding: float) -> float:
    r"""Returns the factor of the update while there is no pair.

    It is :math:`\min(1, 1 / \|u\|_1)`, as in torch. Where :math:`u` is so short that the change of
    the gradient would be lost in rounding, it is :math:`\epsilon^{2/3} \|x\| / \|u\|`.
    """
    total = size(update)
    if total > 1:
        return 1 / total
    length, norm = math.sqrt(dot(point, point)), math.sqrt(dot(update, update))
    return max(1.0, rounding ** (2 / 3) * length / norm) if norm > 0 else 1.0


class LBFGS(Module):
    r"""Multiplies the update by an inverse Hessian approximation from the last steps.

    With the steps :math:`s_k = x_{k+1} - x_k` and the changes of the gradient
    :math:`y_k = g_{k+1} - g_k` of the last ``history_size`` steps,

    .. math::
        u \leftarrow H u, \qquad
        H_{k+1} = (I - \rho_k s_k y_k^\top) H_k (I - \rho_k y_k s_k^\top) + \rho_k s_k s_k^\top,
        \qquad \rho_k = 1 / y_k^\top s_k,

    starting from :math:`H = (y^\top s / y^\top y) I` of the newest pair. While there is no pair,
    :math:`H` is :math:`\min(1, 1 / \|u\|_1) I`. Points and gradients are those of the steps
    actually taken, including the effect of later modules such as a learning rate or a line search.
    Put the line search directly after it.

    A pair is kept if :math:`y^\top s > 0`, so that `H` is positive definite, and if it is at least
    ``min_curvature`` times :math:`\min(1, \|x\|^2 y^\top y / y^\top s)` of the previous pair, or at
    least :math:`y^\top s` of that pair. For losses of ordinary magnitude this is torch's condition;
    for smaller losses it scales with them, so a loss multiplied by a small number makes the same
    steps. While there is no pair, an update with :math:`\|u\|_1 \le 1` that is shorter than
    :math:`\epsilon^{2/3} \|x\|` is scaled up to that length; otherwise the change of the gradient
    would be lost in rounding. :math:`\epsilon` is the largest machine epsilon among those of the
    parameters and the loss.

    All tensors are treated as one vector: inner products are sums over all of them, so the result
    is the same inside `VectorProjection`, where it is faster. For complex tensors inner products
    are :math:`\mathrm{Re}\langle x, y \rangle`. A parameter without a gradient has a gradient of
    zero. When tensors are added, or change their shape, dtype or device, the state is
    reinitialized. When a projection changes its basis, ``transport`` carries the pairs over, and no
    pair spans the change; ``keep`` leaves them unchanged, which is rarely correct.

    Args:
        history_size: Number of pairs to keep, at least 1. Default 100, as in torch.
        min_curvature: The smallest :math:`y^\top s` for losses of ordinary magnitude, at least 0.
            Default 1e-10, as in torch.

    Raises:
        ArgumentError: If ``history_size`` is below 1 or ``min_curvature`` below 0.

    Cost: ``2 history_size + 4`` state tensors per parameter, all allocated in the first step; ``5
    history_size`` passes over one. The state has the dtype of the parameters: put it inside `To`
    for bfloat16.
    Differs from torch: one iteration per step; directions are scaled as in the first step until
    there is a pair; one more row of steps and changes, so that a failed step leaves the state
    unchanged.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import StrongWolfe
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        >>> optimizer = Optimizer([weight], LBFGS(), StrongWolfe())
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (weight**2 * torch.tensor([1.0, 10.0])).sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(10):
        ...     loss = optimizer.step(closure)
        >>> bool(closure() < 1e-8)
        True

    References:
        Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, algorithm 7.4, equation 7.20.
    """

    sharded = True
    needs = frozenset({"params", "grads"})
    traceable = False  # the number of pairs, and whether one is kept, depend on values
    kinds = {
        "steps": "history",
        "changes": "history",
        "last_params": "first",
        "last_grads": "first",
        "last_check": "scalar",
        "pairs": "scalar",
    }

    def __init__(self, history_size: int = 100, min_curvature: float = 1e-10) -> None:
        super().__init__({"history_size": history_size, "min_curvature": min_curvature})

    def check(self, settings: Settings) -> None:
        require_whole(self, "history_size", settings["history_size"])
        require(self, "min_curvature", settings["min_curvature"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        # The pair of a step is written while the step may still fail, so into a spare row.
        rows = tensor.expand(settings["history_size"] + 1, *tensor.shape)
        return {
            "steps": torch.zeros_like(rows, memory_format=torch.contiguous_format),
            "changes": torch.zeros_like(rows, memory_format=torch.contiguous_format),
            "last_params": torch.zeros_like(tensor),
            "last_grads": torch.zeros_like(tensor),
            "last_check": torch.full((), -1.0, dtype=torch.float64, device="cpu"),
            "pairs": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def create_state(self, objective: Objective, state: State) -> list[Settings]:
        settings = super().create_state(objective, state)
        common(self, settings)
        if not self._fits(objective, state, settings):
            for entries in state.entries:
                entries.clear()
            super().create_state(objective, state)
        return settings

    def _fits(self, objective: Objective, state: State, settings: list[Settings]) -> bool:
        """Whether the state matches these tensors, with the same number of pairs for all."""
        counts = {int(entries["pairs"]) for entries in state.entries}
        return len(counts) < 2 and all(
            entries["steps"].shape == (values["history_size"] + 1, *tensor.shape)
            and entries["steps"].dtype == tensor.dtype
            and entries["steps"].device == tensor.device
            for entries, tensor, values in zip(
                state.entries, objective.template, settings, strict=True
            )
        )

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        settings = common(self, self.create_state(objective, state))
        min_curvature = float(settings["min_curvature"])
        pairs = self._pairs(state)
        newest, scale = newest_upward(pairs, objective.params)
        least = min_curvature * min(1.0, scale)
        pairs = self._learn(objective, state, pairs, min(least, newest))
        active = set(range(len(update)) if objective.active is None else objective.active)
        vectors = [
            tensor if i in active else torch.zeros_like(tensor) for i, tensor in enumerate(update)
        ]
        result = two_loop(vectors, pairs, least)
        precision = rounding(objective)
        if result is None:  # pairs of a tiny loss have less curvature, but more than rounding
            result = two_loop(vectors, pairs, precision**2 * scale)
        if result is None:
            point = [objective.params[i] for i in active]
            factor = first_factor(vectors, point, precision)
            result = scaled(vectors, factor)
        return [result[i] if i in active else tensor for i, tensor in enumerate(update)]

    def _learn(
        self, objective: Objective, state: State, pairs: list[Pair], least: float
    ) -> list[Pair]:
        """Stores the pair of the last step, and this step's point; returns all pairs.

        Entries are replaced, and only the spare row is written in place, so the state is unchanged
        if the step fails later.
        """
        states, params, grads = state.entries, objective.params, objective.grads
        last_params = [entries["last_params"] for entries in states]
        last_grads = [entries["last_grads"] for entries in states]
        # It differs at the first step, and if the last point was transported to another basis: the
        # components lost there would appear in s and y.
        check = sum(peaks(last_params + last_grads))
        if all(float(entries["last_check"]) == check for entries in states):
            s, y = plus(params, last_params, -1.0), plus(grads, last_grads, -1.0)
            curvature = dot(y, s)
            if 0 < curvature < math.inf and curvature >= least and dot(y, y) < math.inf:
                for entries, step, change in zip(states, s, y, strict=True):
                    row = int(entries["pairs"]) % len(entries["steps"])
                    entries["steps"][row].copy_(step)
                    entries["changes"][row].copy_(change)
                    entries["pairs"] = entries["pairs"] + 1
                pairs = [(s, y), *pairs][: len(states[0]["steps"]) - 1]
        check = sum(peaks(params + grads))
        for entries, param, grad in zip(states, params, grads, strict=True):
            entries["last_params"], entries["last_grads"] = param.clone(), grad.clone()
            entries["last_check"] = torch.full_like(entries["last_check"], check)
        return pairs

    def _pairs(self, state: State) -> list[Pair]:
        """Returns the stored pairs, the newest first."""
        if not state.entries:
            return []
        steps = [entries["steps"].unbind(0) for entries in state.entries]
        changes = [entries["changes"].unbind(0) for entries in state.entries]
        rows, count = len(steps[0]), int(state.entries[0]["pairs"])
        return [
            ([step[k % rows] for step in steps], [change[k % rows] for change in changes])
            for k in range(count - 1, max(count - rows, -1), -1)
        ]
