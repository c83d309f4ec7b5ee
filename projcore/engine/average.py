"""The loss as the mean over processes, each of which evaluates it on its share of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.distributed import is_available, is_initialized

from projcore._shards import is_sharded
from projcore.engine.facts import as_loss


class LossAverage:
    """Averages losses over the processes that parameters are sharded over, or over all.

    As gradients are averaged: each process counts the same.

    Args:
        parameters: The parameters.
        wanted: Whether to average; None if there are sharded parameters.
    """

    def __init__(self, parameters: Sequence[Any], wanted: bool | None) -> None:
        sharded = [parameter for parameter in parameters if is_sharded(parameter)]
        self._device = parameters[0].device
        self._groups: list[Any] = []
        if wanted is False:
            return
        for mesh in dict.fromkeys(parameter.device_mesh for parameter in sharded):
            self._groups += [mesh.get_group(k) for k in range(mesh.ndim)]
        if wanted and not sharded and is_available() and is_initialized():
            self._groups = [torch.distributed.group.WORLD]

    def __call__(self, loss: Tensor) -> Tensor:
        """Returns the mean of a loss; one collective for each dimension of a mesh."""
        if not self._groups:
            return loss
        dtype = torch.promote_types(loss.dtype, torch.float32)
        mean = loss.to(self._device, dtype, copy=True)
        for group in self._groups:
            torch.distributed.all_reduce(mean, group=group)
            mean /= group.size()
        return mean.to(loss.device, loss.dtype)

    def of(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the closure with the mean of its loss."""
        if not self._groups:
            return closure

        @wraps(closure)  # it also says whether it takes ``backward``
        def averaged(**options: Any) -> Tensor:
            return self(as_loss(closure(**options)))

        return averaged
