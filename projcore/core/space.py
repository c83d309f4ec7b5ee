"""Spaces: the facts about a list of tensors that are known before these have values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from projcore._contexts import Context
from projcore._views import among
from projcore.core.settings import Settings
from projcore.core.state import State


@dataclass(frozen=True, eq=False)
class Space:
    """A list of tensors that a module is planned for, with its state for them.

    Attributes:
        template: Tensors on the device ``meta`` that have the shapes and dtypes.
        groups: The parameter group of each tensor; a tuple if it is made from several groups.
        sources: For each tensor, the indices of the optimizer's parameters that it is made from.
        keys: A number that identifies each tensor, for example as a seed, whatever the others are:
            made from its parameter's name, or without one from its index in the optimizer.
        formats: Device and mesh of each; torch takes tensors in one list if theirs are equal.
        state: The module's state for these tensors.
        context: The facts about the optimizer.
        batch_dims: How many leading dimensions of each tensor index independent tensors.
        active: Indices of the tensors that have a gradient, or None if all have.
        places: The index of each tensor in the region that is planned, of which these may be some.
    """

    template: Sequence[Tensor]
    groups: Sequence[Hashable]
    sources: Sequence[tuple[int, ...]]
    keys: Sequence[int]
    formats: Sequence[Hashable]
    state: State
    context: Context = field(repr=False)
    batch_dims: int = 0
    active: Sequence[int] | None = None
    places: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", range(len(self.template)))

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
        return [names[source[0]] if len(source) == 1 else None for source in self.sources]

    @property
    def absent(self) -> Sequence[tuple[str | None, Tensor, int]] | None:
        """Name, template and group of each frozen parameter, which is therefore in no space.

        None if there are lazy parameters, whose shapes are not known yet.
        """
        return self.context.absent

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
            sources=[self.sources[i] for i in indices],
            keys=[self.keys[i] for i in indices],
            formats=[self.formats[i] for i in indices],
            state=self.state.select(indices),
            active=among(self.active, indices),
            places=[self.places[i] for i in indices],
        )
