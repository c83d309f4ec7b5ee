"""Limiting how fast the norm of the update grows."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Node, Settings, Transform, require
from projcore.ops import norms


def limit_growth(
    tensor: Tensor, previous: Tensor, gamma: float | Tensor, batch_dims: int
) -> Tensor:
    """Scales a tensor, or each item of it, and writes its new norm into `previous`."""
    wide = tensor.to(_wide(tensor))
    norm = norms([wide], batch_dims)[0].reshape(previous.shape)
    # Nothing grows out of zero (or NaN), so a norm that is not above it limits nothing.
    limited = torch.where(previous > 0, torch.minimum(norm, gamma * previous), norm)
    factor = torch.where(norm > limited, limited / norm, 1.0)
    previous.copy_(limited)
    ones = (1,) * (tensor.ndim - batch_dims)
    return (wide * factor.reshape(tensor.shape[:batch_dims] + ones)).to(tensor.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of the tensor, but with at least the digits of float32, which 1.01 needs."""
    return torch.promote_types(tensor.dtype, torch.float32)


class NormGrowthLimiter(Transform):
    r"""Limits the growth of the norm of each tensor of the update, from one step to the next.

    .. math::
        u_t \leftarrow u_t \cdot \min\left(1,
        \frac{\gamma \lVert u_{t-1} \rVert}{\lVert u_t \rVert}\right)

    with the :math:`u_{t-1}` that it returned at the step before. The first update passes, and so
    does one after an update of zeros, or of NaN: otherwise all that follow would be such, too. The
    authors' code adds 1e-8 to the norm before; after zeros the update creeps up from there.

    Args:
        gamma: :math:`\gamma`, at least 1.

    Raises:
        ArgumentError: If ``gamma`` is out of range.

    Cost: memory of one number for each tensor; two passes over the update. Nothing waits for the
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
    kinds = {"norm": "scalar"}

    def __init__(self, gamma: float = 1.01) -> None:
        super().__init__({"gamma": gamma})

    def check(self, settings: Settings) -> None:
        require(self, "gamma", settings["gamma"], minimum=1)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        shape = (*tensor.shape[:batch_dims], 1)
        return {"norm": tensor.new_zeros(shape, dtype=_wide(tensor).to_real())}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        gamma = settings[0]["gamma"]
        return [
            limit_growth(tensor, state["norm"], gamma, batch_dims)
            for tensor, state in zip(tensors, states, strict=True)
        ]
