"""Recipes on the command line: ``galore_adamw(rank=128)``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch

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
    try:
        call = ast.parse(f"recipe({match['arguments'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, SyntaxError):
        raise ArgumentError(
            f"It begins with the recipe {name!r}, but is no call of it. A recipe makes a whole "
            "optimizer, so it stands alone, and takes values by name. "
            f"Write {name}(name=value, ...)."
        ) from None
    return name, arguments


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
