"""Writes modules as specs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from projcore import registry
from projcore._bases import is_chain, is_choice, is_module
from projcore._construct import is_numbers
from projcore.errors import SpecError

if TYPE_CHECKING:
    from projcore.choice import Choice
    from projcore.core.module import Module


def expression(module: Module | Choice, *, strict: bool = True) -> str:
    """Returns the expression that builds a module or choice; `projcore.build` reads it.

    Args:
        module: The module or choice.
        strict: Whether to raise for values that no spec can hold. Otherwise their ``repr`` is
            printed, so that any module can be shown.

    Raises:
        SpecError: If `strict` and an argument is something that no spec can hold, as a class.

    Example:
        >>> from projcore.modules import Adam, LR
        >>> expression(Adam(betas=(0.8, 0.95)))
        'adam(betas=(0.8, 0.95))'
    """
    return _Text(strict).chain(module)


def to_spec(module: Module | Choice) -> Any:
    """Returns the JSON form of a module or choice, which `build` reads.

    Raises:
        SpecError: If an argument is something that no spec can hold, as a class.

    Example:
        >>> from projcore.modules import LR
        >>> to_spec(LR(0.1))
        {'lr': 0.1}
    """
    return _Json().module(module)


def _leading(
    name: str, parameters: list[Parameter], arguments: Mapping[str, Any]
) -> list[Parameter]:
    """Returns the parameters that are printed as positional arguments.

    They are the first ones, as far as they have no default; or the very first if it is called as
    the component is: ``lr(0.1)``.
    """
    leading = []
    for parameter in parameters:
        if parameter.name not in arguments or parameter.kind is parameter.KEYWORD_ONLY:
            break
        if parameter.default is not parameter.empty and parameter.name != name:
            break
        leading.append(parameter)
    return leading


def _arguments(module: Module | Choice) -> dict[str, Any]:
    """Returns the arguments that it was built with; its children as modules."""
    children = module.children if is_module(module) else {}
    return {key: children.get(key, value) for key, value in module.arguments.items()}


class _Text:
    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def chain(self, module: Module | Choice) -> str:
        if is_chain(module) and len(module.modules) > 1:
            return "; ".join(map(self.module, module.modules))
        return self.module(module)

    def module(self, module: Module | Choice) -> str:
        if is_chain(module):
            return f"[{', '.join(map(self.module, module.modules))}]"
        name = registry.name_of(type(module)) or type(module).__name__
        arguments = _arguments(module)
        short = name.rpartition(":")[2]
        parameters = registry.parameters(type(module))
        leading = {each.name for each in _leading(short, parameters, arguments)}
        parts = []
        for key, value in arguments.items():
            text = self.value(value, f"{type(module).__name__}({key}=")
            parts.append(text if key in leading else f"{key}={text}")
        return f"{name}({', '.join(parts)})"

    def value(self, value: Any, where: str) -> str:
        if is_module(value) or is_choice(value):
            return self.module(value)
        if isinstance(value, (list, tuple)):
            items = [self.value(item, where) for item in value]
            is_list = isinstance(value, list) or any(map(is_module, value))
            if is_list and not is_numbers(value):
                return f"[{', '.join(items)}]"
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        if isinstance(value, Mapping):
            if self.strict and not all(isinstance(key, (str, int, float)) for key in value):
                raise _refusal(value, where)
            pairs = [f"{key!r}: {self.value(item, where)}" for key, item in value.items()]
            return f"{{{', '.join(pairs)}}}"
        simple = _simple(value)
        if simple is None and value is not None:
            if self.strict:
                raise _refusal(value, where)
            return repr(value)
        return repr(simple)


class _Json:
    def module(self, module: Module | Choice) -> Any:
        if is_chain(module):
            return [self.module(each) for each in module.modules]
        name = registry.name_of(type(module)) or type(module).__name__
        arguments = {
            key: self.value(value, f"{type(module).__name__}({key}=")
            for key, value in _arguments(module).items()
        }
        if not arguments:
            return name
        parameters = registry.parameters(type(module))
        leading = _leading(name.rpartition(":")[2], parameters, arguments)
        if [each.name for each in leading] == list(arguments):
            (value, *others) = arguments.values()
            if not others and not isinstance(value, dict):
                return {name: value}
        return {name: arguments}

    def value(self, value: Any, where: str) -> Any:
        if is_module(value) or is_choice(value):
            return self.module(value)
        if isinstance(value, (list, tuple)):
            return [self.value(item, where) for item in value]
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise _refusal(value, where)
            return {key: self.value(item, where) for key, item in value.items()}
        simple = _simple(value)
        if simple is None and value is not None:
            raise _refusal(value, where)
        return simple


def _simple(value: Any) -> str | int | float | None:
    """Returns a value as a string or a number of Python's own, or None if it is neither."""
    if isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # of a subclass too, as numpy's float64
            return kind(value)
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        if isinstance(value, torch.device):
            return str(value)
        if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_complex():
            number: float = value.item()
            return number
    return None


def _refusal(value: object, where: str) -> SpecError:
    what = f"of type {type(value).__name__}"
    if isinstance(value, type):
        what = "a class"
    elif isinstance(value, Mapping):
        what = "a mapping whose keys are not strings"
    return SpecError(
        f"{where}{value!r}) cannot be written as a spec: the value is {what}. A spec holds "
        "numbers, strings, None, tuples, lists, mappings and modules."
    )
