"""Facts without values, for planning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from projcore.core.objective import Evaluation, Objective
from projcore.core.space import Space


class Sketch(Objective):
    """Facts without values, for planning."""

    def __init__(self, space: Space, context: Any = None) -> None:
        self.space = space
        self.context: Any = context or space.context
        self.template = list(space.template)

    @property
    def params(self) -> list[Tensor]:
        return self.template

    @property
    def grads(self) -> list[Tensor]:
        return self.template

    @property
    def loss(self) -> Tensor | None:
        return None

    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        raise NotImplementedError("a plan has no values")
