"""Keeps `torch.autocast` out of the optimizer's own arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

Closure = Callable[..., Any] | None


def run_without_autocast(
    run: Callable[[Closure], object], closure: Closure, device_types: Iterable[str]
) -> None:
    """Calls ``run(closure)`` with autocast off, and the closure inside with autocast as it is now.

    Under autocast, products of an optimizer's float32 state would be rounded to bfloat16.
    """
    active = [kind for kind in device_types if torch.is_autocast_enabled(kind)]
    if not active:
        run(closure)
        return
    cache = torch.is_autocast_cache_enabled()
    dtypes = {kind: torch.get_autocast_dtype(kind) for kind in active}
    inside = closure
    if closure is not None:

        @functools.wraps(closure)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for kind, dtype in dtypes.items():
                    stack.enter_context(torch.autocast(kind, dtype, cache_enabled=cache))
                return closure(*args, **kwargs)

    with ExitStack() as stack:
        for kind in active:
            stack.enter_context(torch.autocast(kind, enabled=False))
        run(inside)
