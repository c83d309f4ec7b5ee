"""Gradient centralization."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform
from projcore.ops import by_parts, means_over


def centralize(tensors: list[Tensor], batch_dims: int) -> list[Tensor]:
    """Subtracts the mean over all dimensions but the first; vectors pass unchanged."""
    places = [i for i, tensor in enumerate(tensors) if tensor.ndim >= batch_dims + 2]
    if not places:
        return tensors
    some = [tensors[i] for i in places]
    means = means_over(some, [range(batch_dims + 1, tensor.ndim) for tensor in some])
    result = list(tensors)
    for i, tensor in zip(places, by_parts(torch._foreach_sub, some, means), strict=True):
        result[i] = tensor
    return result


class Centralize(Transform):
    r"""Subtracts the mean of each row of the update, so that rows sum to zero.

    .. math::
        u_{i,\dots} \leftarrow u_{i,\dots} - \operatorname{mean}(u_{i,\dots})

    In `torch.nn.Linear` and convolutions the first dimension indexes outputs, so that a row holds
    the weights of one output. Vectors and scalars pass unchanged.

    Cost: two passes over the update.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Optimizer([weight], Centralize(), LR(1.0))
        >>> weight.grad = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[ 1., -1.],
                [ 0.,  0.]])

    References:
        Yong et al., 2020, https://arxiv.org/abs/2004.01461 (equation 1).
    """

    scope = "tensor"
    sharded = True

    def __init__(self) -> None:
        super().__init__()

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
        return centralize(tensors, batch_dims)
