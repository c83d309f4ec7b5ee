"""Calls the constructor that a spec names; errors point into the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from projcore import errors, registry
from projcore._advice import misplaced_argument, unknown_argument
from projcore._outcome import INTERRUPTS, describe
from projcore.errors import PluginError, ProjcoreError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from projcore.core.chain import Chain

CHAIN = "projcore.core.chain:Chain"
_ANY = Parameter("any", Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Argument:
    """An argument in a spec.

    Attributes:
        keyword: The parameter's name; None for a positional argument.
        make: Returns the value, given the parameter it is for.
        place: Text that points at it.
    """

    keyword: str | None
    make: Callable[[Parameter], Any]
    place: str


def construct(name: str, arguments: Sequence[Argument], place: str, hint: str = "") -> Any:
    """Calls a registered component's constructor; `hint` is added if the name is unknown.

    Raises:
        SpecError: If the arguments do not fit it.
        UnknownNameError: If nothing is registered under that name.
        ProjcoreError: If the constructor raises it; with the place in the spec.
    """
    try:
        cls = registry.load_component(registry.lookup(registry.IN_SPECS, name))
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}{hint}\n{place}") from None
    except PluginError as error:
        raise PluginError(f"{error}\n{place}") from error.__cause__
    parameters = registry.parameters(cls)
    bound = _bind(name, cls, parameters, arguments, place)
    values = {parameter.name: argument.make(parameter) for parameter, argument in bound}
    positional = [values[each.name] for each, argument in bound if argument.keyword is None]
    named = {each.name: values[each.name] for each, argument in bound if argument.keyword}
    mistake = misplaced_argument(name, cls, positional, named, parameters)
    if mistake:
        raise SpecError(f"{mistake}\n{place}")
    try:
        return cls(**values)
    except ProjcoreError as error:
        ours = getattr(errors, type(error).__name__, None) is type(error)
        raise (type(error) if ours else SpecError)(f"{error}\n{place}") from error
    except (*INTERRUPTS, RecursionError):
        raise
    except BaseException as error:  # of any kind: the place in the spec helps more
        raise SpecError(
            f"{cls.__name__} rejected its arguments: {describe(error)}\n{place}"
        ) from error


def make_chain(modules: Sequence[Any]) -> Chain:
    """Makes a chain, whose class is loaded only when needed, like those of components."""
    chain: Chain = registry.load_target(CHAIN)(*modules)
    return chain


def _bind(
    name: str,
    cls: type,
    parameters: Sequence[Parameter],
    arguments: Sequence[Argument],
    place: str,
) -> list[tuple[Parameter, Argument]]:
    """Returns each argument with its parameter."""
    by_name = {parameter.name: parameter for parameter in parameters}
    ordered = [each for each in parameters if each.kind is not each.KEYWORD_ONLY]
    listed = ", ".join(by_name) or "none"
    bound: dict[str, Argument] = {}
    for position, argument in enumerate(arguments):
        keyword = argument.keyword
        if keyword is None:
            if position >= len(ordered):
                raise SpecError(
                    f"{name} takes {len(ordered)} arguments by position and was given more. "
                    f"Its parameters: {listed}. Name them.\n{argument.place}"
                )
            keyword = ordered[position].name
        elif keyword not in by_name:
            given = {each.keyword: each.make(_ANY) for each in arguments if each.keyword}
            message = unknown_argument(name, cls, keyword, given, parameters)
            raise SpecError(f"{message}\n{argument.place}")
        if keyword in bound:
            raise SpecError(f"{name} was given {keyword!r} twice. Give it once.\n{argument.place}")
        bound[keyword] = argument
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in bound:
            raise SpecError(
                f"{name} needs {parameter.name!r}, which was not given. "
                f"Its parameters: {listed}.\n{place}"
            )
    return [(by_name[keyword], argument) for keyword, argument in bound.items()]


def plain(value: Any) -> Any:
    """Returns a value with each list of numbers in it as a tuple, which JSON cannot write."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [plain(item) for item in value]
    return tuple(items) if is_numbers(items) else items


def is_numbers(value: Any) -> bool:
    """Whether a value is a sequence of numbers, None, or such sequences, and not empty."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(
            item is None or isinstance(item, (int, float)) or is_numbers(item) for item in value
        )
    )
