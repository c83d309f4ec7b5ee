"""A limit on the growth of the update's norm."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require
from projcore.ops import copy_, norms


def limit_growth(
    tensors: list[Tensor], previous: list[Tensor], gamma: float | Tensor, batch_dims: int
) -> list[Tensor]:
    """Scales each tensor, or each item of a batch, and writes its new norm into `previous`."""
    wide = [tensor.to(_wide(tensor)) for tensor in tensors]
    found = norms(wide, batch_dims)
    norm = torch.cat([each.reshape(-1) for each in found])
    before = torch.cat([each.reshape(-1) for each in previous])
    # A previous norm of zero or NaN sets no limit.
    limited = torch.where(before > 0, torch.minimum(norm, gamma * before), norm)
    factor = torch.where(norm > limited, limited / norm, 1.0)
    sizes = [each.numel() for each in previous]
    kept = [new.reshape(old.shape) for new, old in zip(limited.split(sizes), previous, strict=True)]
    copy_(previous, kept)
    factors = [
        each.reshape(norm.shape) for each, norm in zip(factor.split(sizes), found, strict=True)
    ]
    result = torch._foreach_mul(wide, factors)
    return [each.to(tensor.dtype) for each, tensor in zip(result, tensors, strict=True)]


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of the tensor, at least float32: 1.01 needs its precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


class NormGrowthLimiter(Transform):
    r"""Limits the growth of the norm of each tensor of the update, from one step to the next.

    .. math::
        u_t \leftarrow u_t \cdot \min\left(1,
        \frac{\gamma \lVert u_{t-1} \rVert}{\lVert u_t \rVert}\right)

    where :math:`u_{t-1}` is its result in the previous step. The first update passes unchanged, and
    so does an update after one of zeros or NaN, which would otherwise persist. The authors' code
    adds 1e-8 to the previous norm instead, from which the update grows slowly after zeros.

    Args:
        gamma: :math:`\gamma`, at least 1.

    Raises:
        ArgumentError: If ``gamma`` is out of range.

    Cost: one number of state per tensor; two passes over the update. No synchronization with the
        device.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Optimizer([weight], NormGrowthLimiter(2.0), LR(1.0))
        >>> for size in (1.0, 100.0):
        ...     weight.grad = torch.tensor([size])
        ...     optimizer.step()
        >>> weight.detach()  # -(1 + 2)
        tensor([-3.])

    References:
        Chen et al., 2024, https://arxiv.org/abs/2410.01623 (section 3.2, Fira).
    """

    scope = "tensor"
    sharded = True
    kinds = {"norm": "scalar"}

    def __init__(self, gamma: float = 1.01) -> None:
        super().__init__({"gamma": gamma})

    def check(self, settings: Settings) -> None:
        require(self, "gamma", settings["gamma"], minimum=1)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        shape = (*tensor.shape[:batch_dims], 1)
        dtype = _wide(tensor).to_real()
        return {"norm": torch.zeros(shape, dtype=dtype, device=tensor.device)}  # never sharded

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
        previous = [state["norm"] for state in states]
        return limit_growth(tensors, previous, settings[0]["gamma"], batch_dims)
