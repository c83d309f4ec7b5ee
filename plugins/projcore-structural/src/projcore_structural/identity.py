"""The space as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore import ProjectionBase


class Identity(ProjectionBase):
    r"""Runs modules on the tensors as they are.

    .. math:: z = x

    Of use where a projection is expected and none is wanted: as a default, as the baseline of a
    comparison, and in tests. It is transparent to stacks.

    Args:
        modules: What to run.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

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
