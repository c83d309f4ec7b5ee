"""Optimizers by name: ``create_optimizer(model, "galore_adamw(rank=128, lr=1e-2)")``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import registry
from projcore.core.module import Module
from projcore.errors import ArgumentError
from projcore.optimizer import Optimizer

__all__ = ["create_optimizer", "read_recipe"]

Params = (
    torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)
Spec = Module | str | Mapping[str, Any] | Sequence[Any]
Call = tuple[str, dict[str, Any]]

_CALL = re.compile(r"\s*(?P<name>\w+(?::\w+)?)\s*(?:\((?P<arguments>.*)\)\s*)?", re.DOTALL)


def create_optimizer(params: Params, spec: Spec) -> torch.optim.Optimizer:
    """Makes the optimizer of a spec: that of a recipe, or one of modules.

    Args:
        params: A model, parameters, pairs of name and parameter, or parameter groups.
        spec: A recipe with its arguments by name, ``"galore_adamw(rank=128, lr=1e-2)"`` or
            ``{"galore_adamw": {"rank": 128}}``, or modules as `build` reads them, ``"adam();
            lr(1e-3)"``: so it may come from a command line, JSON or TOML.

    Returns:
        A `projcore.Optimizer`, unless a recipe makes another one.

    Raises:
        ArgumentError: If the arguments do not fit the recipe, or it rejects them.
        SpecError: If modules cannot be built.
        UnknownNameError: If neither a recipe nor a module has such a name.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
        >>> print(create_optimizer(model, "muon_adamw(lr=0.01)").defaults["lr"])
        0.01
        >>> print(create_optimizer(model, ["adam", {"lr": 1e-3}]))
        adam(); lr(0.001)
    """
    call = read_recipe(spec)
    if call is None:
        if isinstance(params, torch.nn.Module):
            params = params.named_parameters()
        return Optimizer(params, spec)
    name, arguments = call
    function = registry.load("recipe", name)
    try:
        inspect.signature(function).bind(params, **arguments)
    except TypeError as error:
        raise ArgumentError(
            f"The recipe {name!r} was given {arguments!r}: {error}. It takes the parameters "
            f"and {', '.join(list(inspect.signature(function).parameters)[1:])}. Correct that."
        ) from error
    optimizer: torch.optim.Optimizer = function(params, **arguments)
    return optimizer


def read_recipe(spec: Spec) -> Call | None:
    """Returns name and arguments of the recipe in a spec, or None if it consists of modules.

    If a recipe and a module have the same name, it is the module.

    Raises:
        ArgumentError: If it names a recipe and cannot be read.
    """
    if isinstance(spec, Mapping):
        (name, given), *more = spec.items() if spec else [("", None)]
        if more or not isinstance(name, str) or not _is_recipe(name):
            return None
        if not isinstance(given, Mapping):
            raise _unreadable(name)
        return name, {str(key): value for key, value in given.items()}
    match = _CALL.fullmatch(spec) if isinstance(spec, str) else None
    if match is None or not _is_recipe(name := match["name"]):
        return None
    try:
        call = ast.parse(f"recipe({match['arguments'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        return name, {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, SyntaxError):
        raise _unreadable(name) from None


def _unreadable(name: str) -> ArgumentError:
    return ArgumentError(
        f"The spec begins with the recipe {name!r}, but is not a call of it. A recipe makes an "
        "optimizer, so it cannot be combined with others, and takes arguments by name. "
        f"Write {name}(name=value, ...)."
    )


def _is_recipe(name: str) -> bool:
    """Whether a recipe has that name, and neither a module nor a projection does."""
    kinds = {
        component.kind
        for component in registry.components()
        if name in (component.name, component.qualified, *component.aliases)
    }
    return "recipe" in kinds and kinds.isdisjoint({"projection", "module"})
