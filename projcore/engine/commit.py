"""Atomic writes of parameters and state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, MutableMapping, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from projcore.core.state import Entries
from projcore.core.writer import Write
from projcore.engine.flat import flatten, unflatten
from projcore.errors import StepError

Later = Callable[[], "Sequence[Write | Later]"]

# The target of operations that write no parameter, and may therefore be repeated after any failure.
NOTHING = torch.empty(0, device="cpu")


class Store:
    """The state of parameters in the form that modules use, as trees, until it is saved.

    Args:
        saved: The saved state, ``optimizer.state``: the entries of each parameter, by flat names.
        parameters: The parameters.
        key: Identifies the set of parameters that have a gradient.
        copied: Whether modules get a copy of the entry of this name; if None, of no entry.
    """

    def __init__(
        self,
        saved: MutableMapping[Tensor, dict[str, Any]],
        parameters: Sequence[Tensor],
        key: Any = None,
        copied: Callable[[str], bool] | None = None,
    ) -> None:
        self.key = key
        self.trees: list[Entries] = []
        self._saved = saved
        self._parameters = parameters
        self._flat = [saved.get(parameter) for parameter in parameters]
        self.settle()
        for entries in self._flat:
            found = entries or {}
            if copied is not None:
                found = {
                    key: value.clone() if isinstance(value, Tensor) and copied(key) else value
                    for key, value in found.items()
                }
            self.trees.append(unflatten(found))

    def is_current(self, parameters: Sequence[Tensor], key: Any) -> bool:
        """Whether it is for these, and the saved state was not changed from outside."""
        owners, entries = self._last_saved
        return (
            key == self.key
            and same(parameters, self._parameters)
            and same(self._saved, owners)
            and same(self._saved.values(), entries)
            and same(_values(self._flat), self._last_values)
        )

    def save(self) -> None:
        """Saves the current state; if any parameter has state, each gets a dict."""
        flat = [flatten(tree) for tree in self.trees]
        if not any(flat) and not any(self._flat):
            return
        for i, entries in enumerate(flat):
            self._save(i, entries)
        self.settle()

    def save_some(self, indices: Sequence[int]) -> None:
        """Saves the state of some of the parameters; call `settle` before the step ends."""
        for i in indices:
            entries = flatten(self.trees[i])
            if entries or self._flat[i] is not None:
                self._save(i, entries)

    def _save(self, i: int, entries: dict[str, Any]) -> None:
        live = self._flat[i]
        if live is None:
            live = self._flat[i] = self._saved[self._parameters[i]]
        replace_entries(live, entries)

    def settle(self) -> None:
        """Takes the saved state as current, at the end of a step that saved it in several parts."""
        self._last_saved = list(self._saved), list(self._saved.values())
        self._last_values = _values(self._flat)


def _values(flat: Sequence[dict[str, Any] | None]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, filter(None, flat))))


def same(one: Collection[Any], other: Collection[Any]) -> bool:
    """Whether two collections hold the same objects, compared by identity."""
    return len(one) == len(other) and all(map(is_, one, other))


def replace_entries(live: dict[str, Any], entries: dict[str, Any]) -> None:
    """Replaces the entries of a dict in place, so that state dicts that share it show them."""
    live.update(entries)
    if len(live) > len(entries):
        for key in live.keys() - entries.keys():
            del live[key]


def run_writes(writes: Sequence[Write | Later], finish: Callable[[], None]) -> None:
    """Writes all parameters or none, whatever is raised meanwhile, and calls `finish`.

    An exception that is raised after the first write, such as an interrupt, is held back until all
    parameters are written and `finish` was called; then the first one is raised.

    Args:
        writes: The operations; or functions that make some of them when it is their turn, so that
            their temporaries exist only meanwhile.
        finish: Called last.

    Raises:
        StepError: If an operation after the first failed twice.
    """
    queue = deque([*writes, Write(NOTHING, finish)])
    done = 0
    pending: BaseException | None = None
    while queue:
        each = queue.popleft()
        if isinstance(each, Write):
            pending = _run(each, done, pending)
            done += 1
        else:
            made: list[Write | Later] = []
            pending = _run(Write(NOTHING, partial(_make, each, made)), done, pending)
            queue.extendleft(reversed(made))
    if pending is not None:
        raise pending


def _make(later: Later, made: list[Write | Later]) -> None:
    made[:] = later()


def _run(write: Write, done: int, pending: BaseException | None) -> BaseException | None:
    """Runs an operation, twice if necessary; returns the exception that was raised first."""
    target, run, has_written = write
    version, failures = target._version, 0
    while True:
        try:
            run()
            return pending
        except BaseException as error:
            # If it has written, the exception was raised after the operation completed.
            written = has_written() if has_written else target._version != version
            if not done and not written:
                raise
            failures += isinstance(error, Exception)
            if failures == 2 and not written:
                raise _partial_write(done, error) from error
            pending = pending or error
            if written:
                return pending


def _partial_write(done: int, error: BaseException) -> StepError:
    return StepError(
        f"Of the operations that write parameters, {done} had run when the next one failed twice: "
        f"{error}. So the step has changed only some of the parameters. Load the last checkpoint."
    )


def make_buckets(sizes: Sequence[int], indices: Sequence[int], size: float) -> list[list[int]]:
    """Splits indices into runs of at most `size` in total; a larger one is a run by itself."""
    buckets: list[list[int]] = []
    left: float = 0
    for i in indices:
        if not buckets or sizes[i] > left:
            buckets.append([])
            left = size
        buckets[-1].append(i)
        left -= sizes[i]
    return buckets
