"""The memory of an optimizer's state, and of the temporaries of a step."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Key = tuple[torch.device, int]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns the bytes of the storages behind all tensors in ``optimizer.state``, each once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(list(optimizer.state.values()))]
    return sum({_key(storage): storage.nbytes() for storage in storages}.values())


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside the ``with`` block that are alive at once.

    Each result of a torch operation is tracked until its storage is released, so `peak` is exact to
    the byte for tensors. Workspaces that a kernel allocates and frees are not seen.

    Attributes:
        live: Bytes alive now.
        peak: Bytes that were alive at once, outside `paused`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._paused = False
        self._followed: set[_Key] = set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps counting, without changing `peak`."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before
            self._raise_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = {_key(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if _key(storage) not in known | self._followed:
                self._follow(storage)
        self._raise_peak()
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        self._followed.add(key)
        self.live += size
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: _Key, size: int) -> None:
        self._followed.discard(key)
        self.live -= size

    def _raise_peak(self) -> None:
        if not self._paused:
            self.peak = max(self.peak, self.live)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _key(storage: torch.UntypedStorage) -> _Key:
    return storage.device, storage.data_ptr()
