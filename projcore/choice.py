"""Choices: arguments of components that themselves have arguments."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from projcore._arguments import Remembering
from projcore._bases import AnyChoice
from projcore.core.module import Kind
from projcore.core.settings import Settings
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.spec import build_choice, expression
from projcore.values import plain


class Choice(Remembering, AnyChoice, ABC):
    """An argument of a component that itself has arguments: fixed when built, without tensors.

    A component that takes one declares a parameter whose default is a choice, converts its argument
    with `as_choice`, and calls the methods that its base class for choices defines. Choices of the
    same class and arguments are equal. A choice prints as its spec, and is written in a spec like a
    module: ``subspace([adam()], basis=svd())``.

    Attributes:
        host: The component that takes such choices, and its parameter for them. The conformance kit
            checks a choice inside that component.
        kinds: How its entries in the component's state change under a change of basis, as
            `Module.kinds`.
        defaults: Its settings, which the component has among its own.
        arguments: The constructor's arguments that differ from their defaults, by name.

    Example:
        >>> from projcore.choices import SVD
        >>> print(SVD(period=50)), SVD(period=50) == SVD(50)
        svd(period=50)
        (None, True)
    """

    host: ClassVar[tuple[str, str]]
    kinds: ClassVar[Mapping[str, Kind]] = {}

    def __init__(self, defaults: Mapping[str, Any] | None = None) -> None:
        self.defaults: dict[str, Any] = dict(plain(defaults or {}))

    def check(self, owner: object, settings: Settings) -> None:
        """Raises if a setting has a bad value; the owner, a component, calls it in its `check`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and _identity(self) == _identity(other)

    def __hash__(self) -> int:
        return hash((type(self), str(self)))

    def __str__(self) -> str:
        return expression(self, strict=False)

    __repr__ = __str__


Chosen = TypeVar("Chosen", bound=Choice)


def as_choice(owner: Remembering, name: str, value: object, base: type[Chosen]) -> Chosen:
    """Returns an argument as a choice; it may be one, its expression, or its JSON form.

    Args:
        owner: The component, which then prints with the choice.
        name: Its parameter.
        value: The argument.
        base: The class of such choices.

    Raises:
        ArgumentTypeError: If it is not a choice.
        ArgumentError: If it is a choice for another parameter.
        UnknownNameError: If no choice of that name is registered.
    """
    made = value
    if isinstance(value, (str, Mapping)):
        made = owner._arguments[name] = build_choice(value)
    if isinstance(made, base):
        return made
    error = ArgumentError if isinstance(made, Choice) else ArgumentTypeError
    who = type(owner).__name__
    raise error(
        f"{who}({name}={value!r}) was given a {type(made).__name__}. It takes a {base.__name__}. "
        f"Pass one of those that 'projcore list --tag {base.__name__.lower()}' shows, or its spec."
    )


def _identity(choice: Choice) -> tuple[type, dict[str, Any]]:
    return type(choice), choice.arguments
