"""Spaces: the facts about a list of tensors that are known before these have values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from projcore._contexts import SpaceContext
from projcore._views import among
from projcore.core.settings import Settings
from projcore.core.state import State


@dataclass(frozen=True, eq=False)
class Space:
    """A list of tensors that a module is planned for, with its state for them.

    Attributes:
        template: Tensors on the device ``meta`` that have the shapes and dtypes.
        groups: The parameter group of each tensor; a tuple if it is made from several groups.
        parameter_indices: The optimizer's parameters that each tensor is made from.
        tensor_ids: A number that identifies each tensor, for example as a seed: made from its
            parameter's name, or without one from its index in the optimizer.
        devices: Device and mesh of each; torch takes tensors in one list if theirs are equal.
        state: The module's state for these tensors.
        context: The facts about the optimizer.
        batch_dims: How many leading dimensions of each tensor index independent tensors.
        active: Indices of the tensors that have a gradient, or None if all have.
        region_indices: The index of each tensor in the region that is planned.
    """

    template: Sequence[Tensor]
    groups: Sequence[Hashable]
    parameter_indices: Sequence[tuple[int, ...]]
    tensor_ids: Sequence[int]
    devices: Sequence[Hashable]
    state: State
    context: SpaceContext = field(repr=False)
    batch_dims: int = 0
    active: Sequence[int] | None = None
    region_indices: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.region_indices:
            object.__setattr__(self, "region_indices", range(len(self.template)))

    def __len__(self) -> int:
        return len(self.template)

    @property
    def path(self) -> str:
        """The position of the module."""
        return self.state.path

    @property
    def names(self) -> list[str | None]:
        """The name of each tensor's parameter; None if that has none, or there are several."""
        names = self.context.parameter_names
        return [names[source[0]] if len(source) == 1 else None for source in self.parameter_indices]

    @property
    def frozen(self) -> Sequence[tuple[str | None, Tensor, int]] | None:
        """Name, template and group of each frozen parameter, which is therefore in no space.

        None if there are lazy parameters, whose shapes are not known yet.
        """
        return self.context.frozen

    def settings(self) -> list[Settings]:
        """Returns the settings of the module, for each tensor.

        When one that was read changes, the optimizer is planned again.
        """
        return [self.context.settings(self.path, group) for group in self.groups]

    def child(self, name: str) -> Space:
        """Returns the space of the child of that name, with the same tensors."""
        return replace(self, state=self.state.child(name))

    def select(self, indices: Sequence[int]) -> Space:
        """Returns the space of some of the tensors."""
        return replace(
            self,
            template=[self.template[i] for i in indices],
            groups=[self.groups[i] for i in indices],
            parameter_indices=[self.parameter_indices[i] for i in indices],
            tensor_ids=[self.tensor_ids[i] for i in indices],
            devices=[self.devices[i] for i in indices],
            state=self.state.select(indices),
            active=among(self.active, indices),
            region_indices=[self.region_indices[i] for i in indices],
        )
