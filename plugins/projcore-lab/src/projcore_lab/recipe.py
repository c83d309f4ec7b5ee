"""Recipes on the command line, ``galore_adamw(rank=128)``, and optimizers of torch's own."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from projcore import registry
from projcore.errors import ArgumentError

_CALL = re.compile(r"\s*(?P<name>\w+(?::\w+)?)\s*(?:\((?P<arguments>.*)\)\s*)?", re.DOTALL)


def read_recipe(spec: str) -> tuple[str, dict[str, Any]] | None:
    """Returns name and arguments of a recipe in a spec, or None if it is of modules.

    Raises:
        ArgumentError: If it names a recipe and cannot be read.
    """
    match = _CALL.fullmatch(spec)
    if match is None or not _is_recipe(name := match["name"]):
        return None
    return name, _arguments("recipe", name, match["arguments"])


def _arguments(kind: str, name: str, text: str | None) -> dict[str, Any]:
    """Returns the values by name between the parentheses of a call."""
    try:
        call = ast.parse(f"call({text or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        return {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, SyntaxError):
        raise ArgumentError(
            f"It begins with the {kind} {name!r}, but is no call of it. It makes a whole "
            "optimizer, so it stands alone, and takes values by name. "
            f"Write {name}(name=value, ...)."
        ) from None


def _is_recipe(name: str) -> bool:
    """Whether a recipe has that name, and no module, which specs may mean as well."""
    kinds = {
        component.kind
        for component in registry.components()
        if name in (component.name, component.qualified, *component.aliases)
    }
    return kinds == {"recipe"}


def call_recipe(name: str, arguments: Mapping[str, Any], params: Any) -> torch.optim.Optimizer:
    """Returns the optimizer that a recipe makes of a model or of parameters."""
    function = registry.load("recipe", name)
    try:
        inspect.signature(function).bind(params, **arguments)
    except TypeError as error:
        raise ArgumentError(
            f"The recipe {name!r} was given {dict(arguments)!r}: {error}. It takes the parameters "
            f"and {', '.join(list(inspect.signature(function).parameters)[1:])}. Correct that."
        ) from error
    optimizer: torch.optim.Optimizer = function(params, **arguments)
    return optimizer


def call_torch(spec: str, model: nn.Module) -> torch.optim.Optimizer:
    """Returns an optimizer of `torch.optim` for a model's parameters: ``SGD(lr=0.1)``."""
    match = _CALL.fullmatch(spec)
    cls = getattr(torch.optim, match["name"], None) if match else None
    if match is None or not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ArgumentError(
            f"torch.optim has no {spec!r}. A spec that begins so names one of its classes, and "
            "takes values by name. Write torch.optim.SGD(lr=0.1)."
        )
    arguments = _arguments("class", cls.__name__, match["arguments"])
    try:
        return cls(model.parameters(), **arguments)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"torch.optim.{cls.__name__} was given {arguments!r}: {error}. Correct that."
        ) from error
