"""Cached constants of a transform for each length."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import torch

T = TypeVar("T")
LONG = 1 << 16  # longer tables are large, and are not cached


def table(
    make: Callable[[int], T],
) -> Callable[[int, torch.dtype | None, torch.device], T]:
    """Turns a function of a length into a cached one of length, dtype and device.

    The results, a tensor or a tuple of tensors, are computed on the CPU, in float64 or as integers,
    and then converted to that dtype (unless it is None) and device.
    """

    def compute(length: int, dtype: torch.dtype | None, device: torch.device) -> T:
        with torch.inference_mode(False), torch.no_grad():
            made = make(length)
            if isinstance(made, tuple):
                return type(made)(each.to(device, dtype) for each in made)
            return made.to(device, dtype)  # type: ignore[attr-defined,no-any-return]

    remembered = lru_cache(256)(compute)

    @wraps(make)
    def get(length: int, dtype: torch.dtype | None, device: torch.device) -> T:
        return (compute if length > LONG else remembered)(length, dtype, device)

    return get
