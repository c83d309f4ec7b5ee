"""This step's facts: parameters, gradients, loss, and evaluation at other points. Read-only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from projcore._contexts import StepContext
from projcore._views import View
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import State

if TYPE_CHECKING:
    from projcore.core.module import Planner

Evaluation = tuple[Tensor, "list[Tensor] | None"]
PlanMethod = Callable[["Planner", Space], None]


class Objective(ABC):
    """The facts of one step that modules may read; discarded after the step.

    Attributes:
        space: The facts that were known before the step: groups, names, who has a gradient.
        template: Tensors with the shapes, dtypes and devices of this space.
        context: The facts that all objectives of the step share.
    """

    space: Space
    template: list[Tensor]
    context: StepContext

    @property
    def groups(self) -> Sequence[Hashable]:
        """The parameter group of each tensor; a tuple if it is made from several groups."""
        return self.space.groups

    @property
    def active(self) -> Sequence[int] | None:
        """Indices of the tensors that have a gradient, or None if all have; others stay as is."""
        return self.space.active

    @property
    def batch_dims(self) -> int:
        """How many leading dimensions of each tensor index independent tensors."""
        return self.space.batch_dims

    @property
    @abstractmethod
    def params(self) -> list[Tensor]:
        """The parameters at this step's point."""

    @property
    @abstractmethod
    def grads(self) -> list[Tensor]:
        """The gradient at this step's point; zero for a tensor that has none."""

    @property
    @abstractmethod
    def loss(self) -> Tensor | None:
        """The loss at this step's point; None if the step was given no closure."""

    @abstractmethod
    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        """Returns the loss at another point, and the gradient there (None without `backward`).

        Parameters are restored to this step's point, also if it raises. From a point that is an
        iterator, each tensor is taken after the one before was copied.
        """

    def settings_at(self, path: str) -> list[Settings]:
        """Returns the settings of the module at that position, for each tensor of the space."""
        return [self.context.settings(path, group) for group in self.groups]

    def select(self, indices: Sequence[int], space: Space | None = None) -> Objective:
        """Returns the objective of some tensors, others held fixed; `space` is that of these."""
        return _View(self, indices, self.space.select(indices) if space is None else space)

    def replace(self, grads: list[Tensor], active: list[int] | None) -> Objective:
        """Returns the objective with other gradients, and with other tensors that have one."""
        return _View(self, range(len(self.template)), replace(self.space, active=active), grads)

    def run(self, plan: PlanMethod, update: list[Tensor], state: State) -> list[Tensor]:
        """Runs other modules on an update, as for a module that chooses them in its `step`.

        `plan` is the `plan` of the module to run, and `state` the state of that module.
        """
        return self.context.run(plan, update, self, state)


class _View(View, Objective):  # type: ignore[override]
    """An objective derived from another."""
