"""Muon."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Blend, Entries, Settings, Transform, Write, Writer, require, scalar
from projcore.ops import lerp, lerp_, require_choice
from projcore_adaptive._matrices import Folding
from projcore_adaptive.adam import decay_
from projcore_adaptive.orthogonalize import (
    COEFFICIENTS,
    Batch,
    Coefficients,
    Dtype,
    Method,
    Orthogonalizer,
)

AdjustLR = Literal["original", "match_rms_adamw"]


def adjustment(rows: int, columns: int, adjust_lr_fn: AdjustLR) -> float:
    """Returns the factor for the step of a matrix of that shape."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / max(1, columns)))


class Muon(Transform):
    r"""Orthogonalized momentum.

    For a matrix :math:`u` of shape ``(m, n)``,

    .. math::
        b \leftarrow \mu b + (1 - \mu) u, \quad
        \tilde b = \mu b + (1 - \mu) u \text{ with nesterov, else } b, \quad
        u \leftarrow s \operatorname{orthogonalize}(\tilde b) + \lambda p

    with :math:`s = \sqrt{\max(1, m / n)}` for ``"original"`` and
    :math:`s = \frac15 \sqrt{\max(m, n)}` for ``"match_rms_adamw"``, which allows the learning rates
    of AdamW. `Orthogonalize` defines orthogonalize and the arguments from ``method`` on. Followed
    by `LR` it is `torch.optim.Muon`. As in torch, use `AdamW` for embeddings, heads, biases and
    norms, and complex tensors raise an error.

    Args:
        momentum: :math:`\mu`, at least 0 and at most 1.
        nesterov: Whether to use Nesterov's momentum; fixed: parameter groups cannot override it.
        weight_decay: :math:`\lambda`, at least 0. With 0 there is no such setting, and no
            parameters are needed; otherwise groups and schedulers may change it.
        adjust_lr_fn: ``"original"`` or ``"match_rms_adamw"``; fixed.
        method: ``"newton_schulz"`` or ``"svd"``; fixed.
        ns_coefficients: The coefficients of the Newton-Schulz polynomial, or those of each step, or
            ``"polar_express"``; fixed.
        ns_steps: The number of Newton-Schulz steps; fixed.
        eps: The lower bound of the norm by which a matrix is divided; fixed.
        dtype: The dtype of Newton-Schulz; None for that of the tensor; fixed.
        flatten: Whether to flatten other tensors to matrices; fixed.
        folding: ``"fold"`` or ``"last2"``, for stacks of matrices; a setting.

    Raises:
        ArgumentError: If a setting is out of range or unknown; when the optimizer is built, if a
            tensor is complex, or is not a matrix and neither ``flatten`` nor ``folding`` makes one
            of it.
        ArgumentTypeError: If ``ns_coefficients`` are not triples, or ``ns_steps`` is not an
            integer.

    Cost: one state tensor per parameter; operations as of `Orthogonalize`, and 4 passes. If only
    decay and `LR` follow, parameters are written batch by batch, and the full update is never
    materialized.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> optimizer = Optimizer(model.parameters(), Muon(weight_decay=0.01), LR(0.02))

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/
        Liu et al., 2025, https://arxiv.org/abs/2502.16982 (section 2.2: decay, matched RMS).
    """

    scope = "tensor"
    kinds = {"momentum_buffer": "first"}

    def __init__(
        self,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        adjust_lr_fn: AdjustLR = "original",
        method: Method = "newton_schulz",
        ns_coefficients: Coefficients = COEFFICIENTS,
        ns_steps: int = 5,
        eps: float = 1e-7,
        dtype: Dtype | None = "bfloat16",
        flatten: bool = False,
        folding: Folding = "fold",
    ) -> None:
        require_choice(self, "adjust_lr_fn", adjust_lr_fn, AdjustLR)
        require(self, "weight_decay", weight_decay, minimum=0)
        self.nesterov = nesterov
        self.adjust_lr_fn: AdjustLR = adjust_lr_fn
        self.orthogonalizer = Orthogonalizer(
            "Muon", method, ns_coefficients, ns_steps, eps, dtype, flatten
        )
        self.orthogonalizer.check(self)
        defaults: dict[str, Any] = {"momentum": momentum, "folding": folding}
        if weight_decay > 0:
            self.needs = frozenset({"params"})
            defaults["weight_decay"] = weight_decay
        super().__init__(defaults)

    def check(self, settings: Settings) -> None:
        require(self, "momentum", settings["momentum"], minimum=0, maximum=1)
        require(self, "weight_decay", settings.get("weight_decay", 0.0), minimum=0)
        require_choice(self, "folding", settings["folding"], Folding)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        self.orthogonalizer.accept(tensor, batch_dims, settings["folding"])
        return {"momentum_buffer": torch.zeros_like(tensor)}

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
        momentum = scalar(values["momentum"])
        buffers = [state["momentum_buffer"] for state in states]
        lerp_(buffers, tensors, 1 - momentum)
        update = list(tensors)
        for batch in self.orthogonalizer.batches(tensors, batch_dims, values["folding"]):
            moved = [buffers[i] for i in batch.places]
            results = self.direction(batch, moved, momentum, [1.0] * len(moved))
            for i, tensor in zip(batch.places, results, strict=True):
                update[i] = tensor
        if "weight_decay" in values:
            assert params is not None
            decay_(update, params, scalar(values["weight_decay"]))
        return update

    def direction(
        self, batch: Batch, buffers: list[Tensor], momentum: float | Tensor, scales: list[float]
    ) -> list[Tensor]:
        """Returns the scaled update of a batch from its momentum, as new tensors."""

        def mixed(tensors: list[Tensor]) -> list[Tensor]:
            return lerp(tensors, buffers, momentum) if self.nesterov else buffers

        update = self.orthogonalizer(batch, mixed)
        factors = [
            adjustment(rows, columns, self.adjust_lr_fn) * scale
            for (*_, rows, columns), scale in zip(batch.shapes, scales, strict=True)
        ]
        torch._foreach_mul_(update, factors)
        return update

    def writer(self, targets: list[Tensor]) -> Writer:
        return MuonWriter(self)


class MuonWriter(Writer):
    """Writes parameters batch by batch, so that the full update is never materialized.

    Args:
        muon: The module that computes the update.
    """

    kernel = "Muon, matrices of one shape after the other"
    repeatable = False  # calling it changes the momentum

    def __init__(self, muon: Muon) -> None:
        self.muon = muon

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
        values = settings[0]
        momentum = scalar(values["momentum"])
        buffers = [state["momentum_buffer"] for state in states]
        lerp_(buffers, tensors, 1 - momentum)
        own = scalar(values.get("weight_decay", 0.0))

        def write(batch: Batch) -> Write:
            some = [targets[i] for i in batch.places]
            moved = [buffers[i] for i in batch.places]
            scales = [blends[i].scale for i in batch.places]
            decays = [blends[i].decay + blends[i].scale * own for i in batch.places]

            def run() -> None:
                update = self.muon.direction(batch, moved, momentum, scales)
                if decays.count(decays[0]) == len(decays):
                    decay_(update, some, decays[0])
                else:
                    torch._foreach_add_(update, torch._foreach_mul(some, decays))
                torch._foreach_sub_(some, update)

            return Write(some[0], run)

        batches = self.muon.orthogonalizer.batches(tensors, 0, values["folding"])
        return [write(batch) for batch in batches]
