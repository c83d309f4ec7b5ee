"""Objectives and spaces of some of the tensors of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from projcore.core.objective import Evaluation, Objective
    from projcore.core.space import Space


class View:
    """An objective as a function of some of its tensors, the others held fixed.

    Args:
        whole: The objective.
        indices: Its tensors.
        space: Their space.
        grads: The gradients of these, if not those of `whole`.
    """

    def __init__(
        self,
        whole: Objective,
        indices: Sequence[int],
        space: Space,
        grads: list[Tensor] | None = None,
    ) -> None:
        self.space = space
        self.context = whole.context
        self._whole = whole
        self._indices = indices
        self._given = grads

    @property
    def template(self) -> list[Tensor]:
        template = self._whole.template
        return [template[i] for i in self._indices]

    @property
    def params(self) -> list[Tensor]:
        params = self._whole.params
        return [params[i] for i in self._indices]

    @property
    def grads(self) -> list[Tensor]:
        if self._given is not None:
            return self._given
        grads = self._whole.grads
        return [grads[i] for i in self._indices]

    @property
    def loss(self) -> Tensor | None:
        return self._whole.loss

    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        full: Iterable[Tensor] = self._scattered(iter(point))
        if isinstance(point, Sequence) or list(self._indices) != sorted(self._indices):
            full = list(self._whole.params)
            for i, tensor in zip(self._indices, point, strict=True):
                full[i] = tensor
        loss, grads = self._whole.evaluate(full, backward)
        return loss, None if grads is None else [grads[i] for i in self._indices]

    def _scattered(self, point: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yields all tensors, those of the point as they come."""
        chosen = set(self._indices)
        for i, param in enumerate(self._whole.params):
            yield next(point) if i in chosen else param


def among(active: Sequence[int] | None, indices: Sequence[int]) -> list[int] | None:
    """Returns which of some tensors are active, by their new indices; None for all."""
    if active is None:
        return None
    chosen = set(active)
    found = [j for j, i in enumerate(indices) if i in chosen]
    return None if len(found) == len(indices) else found
