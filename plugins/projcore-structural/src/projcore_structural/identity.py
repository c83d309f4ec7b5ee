"""The identity projection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore import ProjectionBase


class Identity(ProjectionBase):
    r"""Runs modules on the tensors unchanged.

    .. math:: z = x

    For use where a projection is expected but none is wanted: as a default, as a baseline, and in
    tests. Stacks pass through it unchanged.

    Args:
        modules: The modules to run.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Cost: none.

    Example:
        >>> import torch
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Identity([Adam()]), LR(1e-3))
    """

    scope = "element"
    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return list(tensors)

    def unproject(
        self, projected_tensors: Iterable[Tensor], *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        return list(projected_tensors)
