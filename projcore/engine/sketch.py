"""An objective for plans, which have no values, and for traces: it cannot evaluate the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore.core.objective import Evaluation, Objective
from projcore.core.space import Space


class Sketch(Objective):
    """An objective of given facts, which cannot evaluate the loss.

    Args:
        space: The space, whose template is used if none is given.
        context: The context that objectives of a step share; by default that of the plan.
        template: The tensors to use for parameters or gradients that are not given.
        params: The parameters.
        grads: The gradients.
        loss: The loss.
    """

    def __init__(
        self,
        space: Space,
        context: Any = None,
        template: list[Tensor] | None = None,
        params: list[Tensor] | None = None,
        grads: list[Tensor] | None = None,
        loss: Tensor | None = None,
    ) -> None:
        self.space = space
        self.context: Any = context or space.context
        self.template = template or list(space.template)
        self._facts = params or self.template, grads or self.template, loss

    @property
    def params(self) -> list[Tensor]:
        return self._facts[0]

    @property
    def grads(self) -> list[Tensor]:
        return self._facts[1]

    @property
    def loss(self) -> Tensor | None:
        return self._facts[2]

    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        raise NotImplementedError("the loss cannot be evaluated in a plan or a trace")
