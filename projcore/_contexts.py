"""What plans and objectives know of the optimizer that they are for; the engine derives from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from projcore.core.objective import Objective, PlanMethod
    from projcore.core.settings import Settings
    from projcore.core.state import State
    from projcore.engine.compiler import Compiler
    from projcore.engine.gather import Owners


class SpaceContext(ABC):
    """Facts about the optimizer that a plan is made for.

    Attributes:
        parameter_names: The name of each of the optimizer's parameters, None for one without.
        frozen: See `Space.frozen`.
        owners: Which process owns each sharded parameter.
    """

    parameter_names: Sequence[str | None]
    frozen: Sequence[tuple[str | None, Tensor, int]] | None = ()
    owners: Owners

    @abstractmethod
    def settings(self, path: str, group: Hashable) -> Settings:
        """Returns the settings of the module at a position, for tensors of a group."""


class StepContext(ABC):
    """What every objective of a step has in common.

    Attributes:
        changed: Whether state may have been replaced, and not only written in place.
        compiler: What compiles; None in an eager step.
    """

    changed: bool = False
    compiler: Compiler | None = None

    @abstractmethod
    def settings(self, path: str, group: Hashable) -> Settings:
        """Returns the settings of the module at a position, for tensors of a group."""

    @abstractmethod
    def run(
        self, plan: PlanMethod, update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        """Runs a part of a plan; see `Objective.run`."""

    @abstractmethod
    def traced(self) -> StepContext:
        """Returns one for a trace, in which 0-d tensors stand for numbers."""
