"""Optimizers of torch's own on the command line: ``torch.optim.SGD(lr=0.1)``."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from torch import nn

from projcore.errors import ArgumentError

_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)", re.DOTALL)


def call_torch(spec: str, model: nn.Module) -> torch.optim.Optimizer:
    """Returns an optimizer of `torch.optim` for a model's parameters: ``SGD(lr=0.1)``."""
    match = _CALL.fullmatch(spec)
    cls = getattr(torch.optim, match["name"], None) if match else None
    if match is None or not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ArgumentError(
            f"torch.optim has no {spec!r}. It must be one of its classes, with keyword arguments, "
            "for example torch.optim.SGD(lr=0.1)."
        )
    try:
        arguments = _values(match["arguments"])
        return cls(model.parameters(), **arguments)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"torch.optim.{cls.__name__} was given ({match['arguments']}): {error}. It takes "
            "keyword arguments, whose values are literals."
        ) from error


def _values(text: str) -> dict[str, Any]:
    """Returns the values by name between the parentheses of a call."""
    call = ast.parse(f"call({text})", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("an argument has no name")
    return {each.arg or "**": ast.literal_eval(each.value) for each in call.keywords}
