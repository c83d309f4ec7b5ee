"""This step's facts: parameters, gradients, loss, and evaluation at other points. Read-only."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.settings import Settings, common
from projcore.errors import StepError

Evaluation = tuple[Tensor, "list[Tensor] | None"]


class Objective(ABC):
    """What modules may ask about this step; it dies with the step.

    Attributes:
        template: Tensors with the shapes, dtypes and devices of this space.
        active: Indices of the tensors that have a gradient, or None if all have. The gradient of
            the others counts as zero; they are not moved.
        batch_dims: How many leading dimensions of each tensor index independent tensors.
        groups: The parameter group of each tensor, or those that it is made from.
        elide: Whether layout projections may run elementwise modules outside (see the plan).
        parameter_names: The name of each of the optimizer's parameters, None for one without.
        absent: The parameters that are frozen and so in no space: of each the name, a tensor
            without storage that has its shape and dtype, and the group. None if there are lazy
            parameters, whose shapes are not known yet.
    """

    template: list[Tensor]
    groups: Sequence[Hashable]
    active: list[int] | None = None
    batch_dims: int = 0
    elide: bool = True
    parameter_names: Sequence[str | None]
    absent: Sequence[tuple[str | None, Tensor, int]] | None = ()

    @property
    @abstractmethod
    def sources(self) -> list[tuple[int, ...]]:
        """Of each tensor, the indices of the optimizer's parameters that it is made from."""

    @property
    def names(self) -> list[str | None]:
        """The name of the parameter that each tensor is made from.

        It is None if that has no name, or if there are several.
        """
        return [
            self.parameter_names[source[0]] if len(source) == 1 else None for source in self.sources
        ]

    @property
    @abstractmethod
    def params(self) -> list[Tensor]:
        """The point of this step."""

    @property
    @abstractmethod
    def grads(self) -> list[Tensor]:
        """The gradient at this step's point."""

    @property
    @abstractmethod
    def loss(self) -> Tensor | None:
        """The loss at this step's point; None if the step was given no closure."""

    @abstractmethod
    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        """Returns the loss at another point, and the gradient there (None without `backward`).

        Parameters are back at this step's point when it returns, and when it raises.
        """

    @abstractmethod
    def settings(self, path: str) -> list[Settings]:
        """Returns the settings of the module at that position, for each tensor of the space."""

    def select(self, indices: Sequence[int]) -> Objective:
        """Returns the objective as a function of some of the tensors, the others held fixed."""
        return _Selected(self, indices)

    def replace(self, grads: list[Tensor], active: list[int] | None) -> Objective:
        """Returns the objective with other gradients, and other tensors that have one."""
        return _Replaced(self, grads, active)


class RootObjective(Objective):
    """The facts in the space of the parameters themselves."""

    def __init__(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        groups: list[int],
        table: Mapping[str, list[dict[str, Any]]],
        active: list[int] | None = None,
        loss: Tensor | None = None,
        closure: Callable[..., Any] | None = None,
        elide: bool = True,
        names: Sequence[str | None] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        self.template = [parameter.detach() for parameter in parameters]
        self.active = active
        self.elide = elide
        self._parameters = parameters
        self._grads = grads
        self.groups: list[int] = groups
        self.parameter_names = [None] * len(parameters) if names is None else names
        self._places = range(len(parameters)) if places is None else places
        self._table = table
        self._loss = loss
        self._closure = closure
        self._origin: list[Tensor] | None = None

    @property
    def sources(self) -> list[tuple[int, ...]]:
        return [(place,) for place in self._places]

    @property
    def params(self) -> list[Tensor]:
        return self.template

    @property
    def grads(self) -> list[Tensor]:
        return self._grads

    @property
    def loss(self) -> Tensor | None:
        return self._loss

    def settings(self, path: str) -> list[Settings]:
        values = self._table.get(path)
        if values is None:
            return [_NO_SETTINGS] * len(self.groups)
        return [values[group] for group in self.groups]

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        if self._closure is None:
            raise StepError(
                "A module evaluates the loss, but step() was given no closure. Pass a function "
                "that computes the loss and its gradients: optimizer.step(closure)."
            )
        active = self.active if self.active is not None else range(len(self._parameters))
        parameters = [self._parameters[i] for i in active]
        if self._origin is None:
            self._origin = [parameter.detach().clone() for parameter in parameters]
        kept = [parameter.grad for parameter in self._parameters]
        try:
            for parameter in self._parameters:
                parameter.grad = None  # so that the closure cannot add to what a module still reads
            torch._foreach_copy_(parameters, [point[i] for i in active])
            loss = call_closure(self._closure, backward)
            grads = [parameter.grad for parameter in self._parameters]
        finally:
            try:
                torch._foreach_copy_(parameters, self._origin)
            except BaseException:  # a parameter must not stay at a trial point, whatever comes
                torch._foreach_copy_(parameters, self._origin)
                raise
            finally:
                for parameter, grad in zip(self._parameters, kept, strict=True):
                    parameter.grad = grad
        if not backward:
            return loss, None
        return loss, fill_zeros(self._parameters, grads)


class _Selected(Objective):
    """An objective of some of the tensors of another; the others stay where they are."""

    def __init__(self, whole: Objective, indices: Sequence[int]) -> None:
        self.template = [whole.template[i] for i in indices]
        self.groups = [whole.groups[i] for i in indices]
        self.batch_dims = whole.batch_dims
        self.elide = whole.elide
        self.parameter_names = whole.parameter_names
        self.absent = whole.absent
        self._whole = whole
        self._indices = indices
        if whole.active is not None:
            chosen = set(whole.active)
            active = [j for j, i in enumerate(indices) if i in chosen]
            self.active = None if len(active) == len(indices) else active

    @property
    def sources(self) -> list[tuple[int, ...]]:
        sources = self._whole.sources
        return [sources[i] for i in self._indices]

    @property
    def params(self) -> list[Tensor]:
        params = self._whole.params
        return [params[i] for i in self._indices]

    @property
    def grads(self) -> list[Tensor]:
        grads = self._whole.grads
        return [grads[i] for i in self._indices]

    @property
    def loss(self) -> Tensor | None:
        return self._whole.loss

    def settings(self, path: str) -> list[Settings]:
        settings = self._whole.settings(path)
        return [settings[i] for i in self._indices]

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        full = list(self._whole.params)
        for i, tensor in zip(self._indices, point, strict=True):
            full[i] = tensor
        loss, grads = self._whole.evaluate(full, backward)
        return loss, None if grads is None else [grads[i] for i in self._indices]


class _Replaced(_Selected):
    """An objective with other gradients than it had."""

    def __init__(self, whole: Objective, grads: list[Tensor], active: list[int] | None) -> None:
        super().__init__(whole, range(len(whole.template)))
        self.active = active
        self._given = grads

    @property
    def grads(self) -> list[Tensor]:
        return self._given


_NO_SETTINGS: dict[str, Any] = {}


def merge_settings(
    path: str, settings: Sequence[Settings], origins: Sequence[Sequence[int]]
) -> list[Settings]:
    """Returns the settings of tensors made from several others, which must agree."""
    return [
        settings[origin[0]]
        if len(origin) == 1
        else common(f"The module at {path!r}", [settings[i] for i in origin])
        for origin in origins
    ]


def call_closure(closure: Callable[..., Any], backward: bool = True) -> Tensor:
    """Evaluates a closure as torch does; one that takes ``backward`` is told if it is wanted."""
    arguments = {} if backward or not takes_backward(closure) else {"backward": False}
    with torch.enable_grad():
        loss = closure(**arguments)
    return as_loss(loss)


def as_loss(value: object) -> Tensor:
    """Returns what a closure returned as a 0-d tensor; raises unless it is one real number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise StepError(
        f"The closure returned {given}. A module needs the loss, which is one real number. "
        "Add `return loss` to it, and reduce the loss, for example by its mean."
    )


def takes_backward(closure: Callable[..., Any]) -> bool:
    """Whether a closure has a parameter ``backward``."""
    try:
        return "backward" in inspect.signature(closure).parameters
    except (TypeError, ValueError):  # no signature to be had, as for some built-in callables
        return False


def fill_zeros(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Replaces missing gradients by zeros that take no memory."""
    return [
        parameter.detach().new_zeros(()).expand(parameter.shape) if grad is None else grad.detach()
        for parameter, grad in zip(parameters, grads, strict=True)
    ]
