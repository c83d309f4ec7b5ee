"""Averages of the parameters that modules keep, and evaluation with these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, StepError


class Averaging(ABC):
    """A module that keeps for each parameter a point to evaluate at, other than the parameter.

    Attributes:
        kept: An entry of its state that has the shape of the parameter.
    """

    kept: ClassVar[str]

    @abstractmethod
    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        """Returns that point, for the parameter as it is and the module's state of it."""


def averages(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Returns a copy of the average that the optimizer keeps of each parameter, by parameter.

    That is what `PolyakAveraging`, `ScheduleFree`, `Lookahead` or `EMANesterov` has for evaluation.
    A parameter that has not moved yet is its own average.

    Raises:
        ArgumentError: If the optimizer has no such module, several for one parameter, or one that
            sees merged tensors rather than the parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Optimizer([weight], "lr(0.1)", "polyak_averaging(0.99)")
        >>> averages(optimizer)[weight]
        tensor([1., 1.])
    """
    return {parameter: average.clone() for parameter, average in _averages(optimizer).items()}


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Puts the averages into the parameters, and on leaving the parameters back.

    Raises:
        ArgumentError: As `averages`.
        StepError: If parameters were changed inside, as by a step: that is undone.

    Cost: memory of the parameters once more.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), "adam()", "lr(0.1)", "polyak_averaging(0.99)")
        >>> with averaged(optimizer):
        ...     output = model(torch.ones(3))
    """
    found = _averages(optimizer)
    parameters = list(found)
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        _copy_(parameters, list(found.values()))
        versions = [parameter._version for parameter in parameters]
        yield
        changed = versions != [parameter._version for parameter in parameters]
    finally:
        _copy_(parameters, kept)
    if changed:
        raise StepError(
            "Parameters were changed while averaged(optimizer) held averages in them. They are "
            "as before again, and the change is lost. Take steps outside of it."
        )


@torch.no_grad()
def _copy_(parameters: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, values)


def _averages(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    places = dict(_places(optimizer.module))
    if not places:
        raise ArgumentError(
            f"The averages of {optimizer} were asked for. It keeps none. Put PolyakAveraging, or "
            "another module that keeps an average, last among its modules."
        )
    found = {}
    for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
        memory = optimizer.state.get(parameter, {})
        here = [place for place, module in places.items() if f"{place}/{module.kept}" in memory]
        shapes = [tuple(memory[f"{place}/{places[place].kept}"].shape) for place in here]
        if here and shapes != [tuple(parameter.shape)]:
            raise ArgumentError(
                f"The averages of {optimizer} were asked for. With a parameter of shape "
                f"{tuple(parameter.shape)} are kept averages of the shapes {shapes}, not one of "
                "its own. Put one module that keeps them outside of all projections."
            )
        found[parameter] = parameter.detach()
        for place in here:
            start = f"{place}/"
            own = {k.removeprefix(start): v for k, v in memory.items() if k.startswith(start)}
            found[parameter] = places[place].average(parameter, own)
    return found


def _places(module: Module, path: str = "") -> Iterator[tuple[str, Averaging]]:
    """Yields the positions of modules that keep averages, and these, in a tree."""
    if isinstance(module, Averaging):
        yield path, module
    for name, child in module.children.items():
        yield from _places(child, f"{path}/{name}" if path else name)
