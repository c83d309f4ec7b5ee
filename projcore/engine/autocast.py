"""Disables `torch.autocast` in the optimizer's own arithmetic."""

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
    """Calls ``run(closure)`` with autocast off, and the closure with autocast as it is now.

    Under autocast, products of an optimizer's float32 state would be rounded to bfloat16.
    """
    active = [device_type for device_type in device_types if torch.is_autocast_enabled(device_type)]
    if not active:
        run(closure)
        return
    cache = torch.is_autocast_cache_enabled()
    dtypes = {device_type: torch.get_autocast_dtype(device_type) for device_type in active}
    with_autocast = closure
    if closure is not None:

        @functools.wraps(closure)
        def with_autocast(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for device_type, dtype in dtypes.items():
                    stack.enter_context(torch.autocast(device_type, dtype, cache_enabled=cache))
                return closure(*args, **kwargs)

    with ExitStack() as stack:
        for device_type in active:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        run(with_autocast)
