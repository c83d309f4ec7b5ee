"""Operations that all processes run together: if one fails, the errors of the others name it.

A process that fails writes its error into torch's store, which all processes share. The others wait
for it in a collective, at most for the timeout of its group; then they read the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.distributed import get_rank, get_world_size, is_available, is_initialized

from projcore.errors import ProjcoreError, StepError

KEY = "projcore/failed"
COUNT = itertools.count()  # numbers optimizers, which all processes make in the same order

Function = TypeVar("Function", bound=Callable[..., Any])


class Together:
    """Whether other processes take the same steps, and which of them have failed.

    Attributes:
        wanted: Whether they take the same steps, and wait for each other.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._turn = 0  # the number of this step, which identifies errors of other steps
        self._number: int | None = None
        self._running = False

    @contextmanager
    def acting(self, *, ends: bool = False) -> Iterator[None]:
        """Runs an operation that all processes run; an error in one of them is named in all.

        Args:
            ends: Whether it ends a step.

        Raises:
            StepError: If a collective failed because another process did.
        """
        several = is_available() and is_initialized() and get_world_size() > 1
        if self._running or not several:  # nested calls belong to the outermost
            yield
            return
        if self._number is None:
            self._number = next(COUNT)
        self._running = True
        try:
            yield
        except Exception as error:
            ends = True
            told = self._told(str(error)) if _is_of_torch(error) else ""
            if told:
                raise StepError(
                    f"Another process has failed while this one waited for it: {told}. Look for "
                    "the cause there."
                ) from error
            if not _is_of_waiting(error):
                self._tell(str(error))
            raise
        finally:
            self._running = False
            self._turn += ends

    def _tell(self, text: str) -> None:
        """Tells the others that this process has failed."""
        try:
            _store().set(f"{KEY}/{self._number}/{get_rank()}", f"{self._turn} {text}")
        except RuntimeError:  # the process that hosts the store has ended
            return

    def _told(self, own: str) -> str:
        """Returns the errors of other processes since this step began, unless they are the same."""
        found = []
        try:
            store = _store()
            for rank in range(get_world_size()):
                key = f"{KEY}/{self._number}/{rank}"
                if rank != get_rank() and store.check([key]):
                    turn, _, text = store.get(key).decode().partition(" ")
                    if int(turn) >= self._turn and text != own:
                        found.append(f"rank {rank} ({text})")
        except RuntimeError:
            return ""
        return ", ".join(found)


def together(ends: bool) -> Callable[[Function], Function]:
    """Decorates a method of an optimizer that all processes call; see `Together.acting`."""

    def decorate(method: Function) -> Function:
        @wraps(method)
        def called(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not optimizer._together.wanted:
                return method(optimizer, *args, **kwargs)
            with optimizer._together.acting(ends=ends):
                return method(optimizer, *args, **kwargs)

        return called  # type: ignore[return-value]

    return decorate


def _is_of_torch(error: Exception) -> bool:
    """Whether an error may come from a collective; gloo raises a bare RuntimeError."""
    if isinstance(error, ProjcoreError):
        return False
    return type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)


def _is_of_waiting(error: Exception) -> bool:
    """Whether an error is about another process, which may have ended without telling."""
    of_gloo = any(each in str(error) for each in ("/gloo/", "caused pair closure"))
    return _is_of_torch(error) and (of_gloo or isinstance(error, torch.distributed.DistError))


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()
