"""Constants that a transform needs for each length, most of them computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import torch

T = TypeVar("T")
LONG = 1 << 16  # longer tables, which are large, are made anew each time


def table(
    make: Callable[[int], T],
) -> Callable[[int, torch.dtype | None, torch.device], T]:
    """Makes a function of a length one of length, dtype and device, which remembers its results.

    They are computed on the CPU, in float64 or as whole numbers, and then brought to that dtype
    (None: as they are) and device: a tensor, or a tuple of tensors.
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
