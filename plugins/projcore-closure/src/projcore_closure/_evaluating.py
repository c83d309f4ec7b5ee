"""The base class of modules that evaluate the objective."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from projcore import Module, Objective, Settings, State, common


class Evaluating(Module):
    """Computes an update by evaluating the objective as a function of all tensors together.

    Tensors without a gradient are excluded, and do not change. The others must share their
    settings. Override `find`.
    """

    sharded = True
    needs = frozenset({"params", "closure"})

    @abstractmethod
    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        """Returns the new update; all tensors have a gradient."""

    def create_state(self, objective: Objective, state: State) -> list[Settings]:
        settings = super().create_state(objective, state)
        common(self, settings)
        return settings

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        settings = common(self, self.create_state(objective, state))
        active = objective.active
        if active is None:
            return self.find(update, objective, state, settings)
        result = list(update)
        if active:
            part = [update[i] for i in active]
            done = self.find(part, objective.select(active), state.select(active), settings)
            for i, tensor in zip(active, done, strict=True):
                result[i] = tensor
        return result
