"""Compiles runs of nodes by `torch.compile`, with 0-d tensors for numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from projcore.errors import ArgumentError, ArgumentTypeError

COMPILED = 8  # plans of other gradients that are compiled; the limit of torch.compile
LOGGER = logging.getLogger("projcore")


class Compiler:
    """Compiles functions by `torch.compile`, and holds the 0-d tensors that replace numbers.

    Args:
        options: Keyword arguments of `torch.compile`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {"dynamic": False, **options}  # shapes of parameters do not change
        self._announced = False
        self._numbers: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a compiled copy, with a code object of its own for torch's recompile limit."""
        assert isinstance(function, FunctionType)
        if not self._announced:
            self._announced = True
            LOGGER.info("torch.compile compiles the step, which may take minutes.")
        code, module = function.__code__.replace(), function.__globals__
        compiled: Callable[..., Any] = torch.compile(FunctionType(code, module), **self.options)
        return compiled

    def groups(
        self, groups: Sequence[Mapping[str, Any]], keys: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Returns groups with 0-d tensors for floats, so that changing one recompiles nothing."""
        made: list[dict[str, Any]] = [{} for _ in groups]
        for key in keys:
            values = [group[key] for group in groups]
            for i, value in enumerate(values):
                first = next((j for j in range(i) if values[j] is value or values[j] == value), i)
                shared = made[first].get(key)  # groups with equal values share a tensor
                made[i][key] = self._as_tensor((i, key), value) if first == i else shared
        return made

    def _as_tensor(self, key: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._as_tensor((*key, i), item) for i, item in enumerate(value))
        if not isinstance(value, float):
            return value
        if key not in self._numbers:
            self._numbers[key] = torch.zeros((), dtype=torch.float64, device="cpu")
        return self._numbers[key].fill_(value)


def as_compiler(value: object) -> Compiler | None:
    """Returns the compiler for the argument ``compile`` of an optimizer; None for eager.

    Raises:
        ArgumentTypeError: If it is neither a bool nor a mapping.
        ArgumentError: If `torch.compile` does not take these options.
    """
    if isinstance(value, bool):
        return Compiler({}) if value else None
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(
            f"Optimizer(compile={value!r}) was given a {type(value).__name__}. It must be a bool, "
            "or keyword arguments of torch.compile, for example {'backend': 'inductor'}."
        )
    try:
        torch.compile(lambda: None, **value)
    except Exception as error:
        raise ArgumentError(
            f"Optimizer(compile={dict(value)!r}) must be keyword arguments of torch.compile, "
            f"which rejects them: {error}."
        ) from error
    return Compiler(value)
