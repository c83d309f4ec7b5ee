"""Transforms of each tensor by itself whose memory depends on what the tensor's dimensions are."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from projcore import Objective, Settings, State, Transform


class BatchedTransform(Transform):
    """A transform of scope ``"tensor"`` that takes batches, and makes memory for batches.

    `Transform.init` is not told how many leading dimensions index tensors, so that it would take a
    batch of vectors for a matrix.
    """

    scope = "tensor"
    batched = True

    @abstractmethod
    def begin(
        self, tensor: Tensor, settings: Settings, batch_dims: int
    ) -> dict[str, Tensor | float]:
        """Returns the memory to begin with; refuses a tensor that cannot be worked on."""

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return self.begin(tensor, settings, 0)

    def remember(self, objective: Objective, state: State) -> list[Settings]:
        settings = objective.settings(state.path)
        for node, tensor, values in zip(state.nodes, objective.template, settings, strict=True):
            if all(isinstance(value, dict) for value in node.values()):
                node.update(self.begin(tensor, values, objective.batch_dims))
        return settings
