"""Averages of the parameters that modules keep, and evaluation at these averages."""

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
    """A module that keeps an average of each parameter, at which the model is evaluated.

    Attributes:
        kept: An entry of its state that has the shape of the parameter.
    """

    kept: ClassVar[str]

    @abstractmethod
    def average(self, parameter: Tensor, memory: Mapping[str, Any]) -> Tensor:
        """Returns the average, given the parameter and the module's state for it."""


def averages(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Returns a copy of the average that the optimizer keeps of each parameter.

    It is the average of `PolyakAveraging`, `ScheduleFree`, `Lookahead` or `EMANesterov`. Before a
    parameter's first step, its average is the parameter itself.

    Raises:
        ArgumentError: If the optimizer has no such module, several for one parameter, or one inside
            a projection that changes the shapes of tensors.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Optimizer([weight], "lr(0.1)", "polyak_averaging(0.99)")
        >>> averages(optimizer)[weight]
        tensor([1., 1.])
    """
    return {parameter: average.clone() for parameter, average in _averages(optimizer).items()}


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Copies the averages into the parameters, and restores the parameters on exit.

    Raises:
        ArgumentError: As `averages`.
        StepError: If the parameters were changed inside the context, as by a step. The change is
            undone.

    Cost: a copy of the parameters.

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
            "Parameters were changed inside averaged(optimizer), where their values are the "
            "averages. They were restored, and the change is lost. Take steps outside the context."
        )


@torch.no_grad()
def _copy_(parameters: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, values)


def _averages(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    places = dict(_places(optimizer.module))
    if not places:
        raise ArgumentError(
            f"averaged() was given {optimizer}, no module of which keeps an average. Add "
            "PolyakAveraging(), or another module that keeps one, as the last module."
        )
    found = {}
    for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
        memory = optimizer.state.get(parameter, {})
        here = [place for place, module in places.items() if f"{place}/{module.kept}" in memory]
        shapes = [tuple(memory[f"{place}/{places[place].kept}"].shape) for place in here]
        if here and shapes != [tuple(parameter.shape)]:
            raise ArgumentError(
                f"averaged() was given {optimizer}, in which a parameter of shape "
                f"{tuple(parameter.shape)} has averages of the shapes {shapes}. It must have one, "
                "of its own shape. Use one module that keeps averages, outside of all projections."
            )
        found[parameter] = parameter.detach()
        for place in here:
            start = f"{place}/"
            own = {k.removeprefix(start): v for k, v in memory.items() if k.startswith(start)}
            found[parameter] = places[place].average(parameter, own)
    return found


def _places(module: Module, path: str = "") -> Iterator[tuple[str, Averaging]]:
    """Yields the positions and modules of a tree that keep averages."""
    if isinstance(module, Averaging):
        yield path, module
    for name, child in module.children.items():
        yield from _places(child, f"{path}/{name}" if path else name)
