"""The mean of the loss over processes, each of which evaluates it on its part of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.distributed import get_world_size, is_available, is_initialized

from projcore._shards import group_of, is_sharded
from projcore.core.module import Module
from projcore.engine.facts import as_loss
from projcore.errors import StepError


class LossAverage:
    """Averages losses over the processes that parameters are sharded over, or over all processes.

    Each process has the same weight, as in the average of gradients.

    Args:
        parameters: The parameters.
        wanted: Whether to average; None to do so if the parameters are sharded.
        module: The module that reads the loss, or None.

    Raises:
        StepError: If it is not known whether other processes train the same parameters.
    """

    def __init__(
        self, parameters: Sequence[Any], wanted: bool | None, module: Module | None
    ) -> None:
        meshes = dict.fromkeys(each.device_mesh for each in parameters if is_sharded(each))
        several = is_available() and is_initialized() and get_world_size() > 1
        self._device = parameters[0].device
        # Functions, as a kept process group would outlive its destruction.
        self._groups: list[Callable[[], Any]] = []
        if wanted is None and several and not meshes and module is not None:
            raise StepError(
                f"{module} reads the loss in one of {get_world_size()} processes, and the "
                "parameters do not show whether the other processes train the same model, as with "
                "DistributedDataParallel. If they do, all must use the same loss: build the "
                "optimizer with average_loss=True. If each process trains a model of its own, or "
                "the closure returns the same value in all, use average_loss=False."
            )
        if wanted is not False:
            self._groups = [partial(group_of, mesh, range(mesh.ndim)) for mesh in meshes]
        if wanted and several and not meshes:
            self._groups = [lambda: torch.distributed.group.WORLD]

    def __call__(self, loss: Tensor) -> Tensor:
        """Returns the mean of a loss; one collective for each mesh."""
        if not self._groups:
            return loss
        dtype = torch.promote_types(loss.dtype, torch.float32)
        mean = loss.to(self._device, dtype, copy=True)
        for group in self._groups:
            torch.distributed.all_reduce(mean, group=group())
            mean /= group().size()
        return mean.to(loss.device, loss.dtype)

    def of(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the closure with the mean of its loss."""
        if not self._groups:
            return closure

        @wraps(closure)  # which also shows whether it takes ``backward``
        def averaged(**options: Any) -> Tensor:
            return self(as_loss(closure(**options)))

        return averaged
