"""Stacks of tensors of equal shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore import Entries, Planner, ProjectionBase, Settings, Space
from projcore_structural._parts import alike, refuse_stacks, stack


class Stack(ProjectionBase):
    r"""Runs modules on stacks of tensors of equal shape, in one call for each shape.

    For :math:`k` tensors of shape :math:`(m, n)`, of one dtype and device, there is one tensor
    inside, of shape :math:`(k, m, n)`, whose entries are independent tensors (``batch_dims`` is 1).
    A module that supports batches gives the same result as outside, in one call instead of
    :math:`k`, which is faster for many small tensors. The map is a permutation of the elements.

    Parameters of one stack must agree on the settings of modules inside that are not elementwise.
    One without a gradient counts as a zero gradient in its stack, and is not changed.

    Args:
        modules: The modules to run on the stacks.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: When the optimizer is built, if it is inside a projection that already makes
            stacks.

    Cost: one copy of the update on the way in, none on the way out. Elementwise modules run outside
    at no cost. A module of scope ``"tensor"`` that does not support batches runs on each entry.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> layers = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(12)])
        >>> weights = [layer.weight for layer in layers]
        >>> optimizer = Optimizer(weights, Stack([Muon()]), LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[1])
        position     module        runs on
        -----------  ------------  -----------
        0            stack([...])  12 x 4 x 4
        0/modules/0    muon()      12 x 4 x 4
        1            lr(0.02)      12 of 4 x 4
    """

    geometry = "layout"
    batch_dims = 1

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)

    def plan(self, planner: Planner, space: Space) -> None:
        refuse_stacks(self, space)
        super().plan(planner, space)

    def origins(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings], projected: int
    ) -> list[list[int]]:
        return alike(params, _shape)

    def project(
        self, tensors: list[Tensor], params: list[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return [stack([tensors[i] for i in indices]) for indices in alike(params, _shape)]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        result: dict[int, Tensor] = {}
        for indices, entries in zip(alike(params, _shape), projected_tensors, strict=True):
            result.update(zip(indices, entries.unbind(0), strict=True))
        return [result[i] for i in range(len(params))]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
