"""Tasks: a model to train, its batches, and its validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


class Validation(NamedTuple):
    """The performance of a model on validation data."""

    loss: float
    accuracy: float | None = None


class Task(ABC):
    """A model, its data and its losses; all of it follows from the seed.

    Every call of `model` returns a new model with the same weights, and every call of
    ``batch(step)`` the same batch, so all contenders start from the same weights and see the same
    data.

    Attributes:
        name: As given on the command line.
        steps: The default number of training steps.
        checks: The number of validations of a run, in addition to early ones.
        lr: The learning rate of the presets.
        goal: The loss to reach, if the task has one.
        inner: The optimizer of the default presets: ``"adamw"`` or ``"adam"``.
        others: Presets that are in the default line-up of this task only.
        loss_name: The name of the loss that `validate` measures.
        description: The data and the model in one line.
        options: Further options of the task, as plain values; together with name and seed they
            determine a run.
    """

    name: str
    steps: int
    checks: int = 40
    lr: float
    goal: float | None = None
    inner: ClassVar[str] = "adamw"
    others: ClassVar[tuple[str, ...]] = ()
    loss_name: ClassVar[str] = "validation loss"
    description: str

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.options: dict[str, Any] = {}

    def model(self) -> nn.Module:
        """Returns a new model; its weights depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.new_model()

    def generator(self, step: int) -> torch.Generator:
        """Returns the random numbers of a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    @abstractmethod
    def new_model(self) -> nn.Module:
        """Returns a new model with weights drawn from torch's global generator."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Returns the data of a step."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the training loss on a batch."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Validation:
        """Measures a model on the validation data."""

    def position(self, model: nn.Module) -> tuple[float, float] | None:
        """Returns the point to draw, if there are just two parameters."""
        return None
