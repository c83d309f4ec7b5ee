"""Writing parameters and state: all or none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, MutableMapping, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from projcore.core.state import Node
from projcore.core.writer import Write
from projcore.engine.flat import flatten, unflatten
from projcore.errors import StepError

Later = Callable[[], "Sequence[Write | Later]"]

# The target of what writes no parameter, and so may be repeated however far it came.
NOTHING = torch.empty(0, device="cpu")


class Store:
    """The state of parameters as modules see it, beside what is saved.

    Args:
        saved: The state as it is saved, ``optimizer.state``: of each parameter, entries under flat
            names.
        parameters: The parameters.
        key: For which gradients it is used.
        copied: Whether modules get copies; of an entry given by its name, if it says so.
    """

    def __init__(
        self,
        saved: MutableMapping[Tensor, dict[str, Any]],
        parameters: Sequence[Tensor],
        key: Any = None,
        copied: Callable[[str], bool] | None = None,
    ) -> None:
        self.key = key
        self.trees: list[Node] = []
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
        """Whether it is for these, and nobody else has put other entries where state is saved."""
        owners, entries = self._noted
        return (
            key == self.key
            and same(parameters, self._parameters)
            and same(self._saved, owners)
            and same(self._saved.values(), entries)
            and same(_values(self._flat), self._known)
        )

    def save(self) -> None:
        """Puts the state as it is now where it is saved, an entry for every parameter if any."""
        flat = [flatten(tree) for tree in self.trees]
        if not any(flat) and not any(self._flat):
            return
        for i, entries in enumerate(flat):
            self._save(i, entries)
        self.settle()

    def save_some(self, places: Sequence[int]) -> None:
        """Saves the state of some of the parameters; `settle` is called before the step ends."""
        for i in places:
            entries = flatten(self.trees[i])
            if entries or self._flat[i] is not None:
                self._save(i, entries)

    def _save(self, i: int, entries: dict[str, Any]) -> None:
        live = self._flat[i]
        if live is None:
            live = self._flat[i] = self._saved[self._parameters[i]]
        replace_entries(live, entries)

    def settle(self) -> None:
        """Notes what is saved now, as at the end of a step that saved it bit by bit."""
        self._noted = list(self._saved), list(self._saved.values())
        self._known = _values(self._flat)


def _values(flat: Sequence[dict[str, Any] | None]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, filter(None, flat))))


def same(one: Collection[Any], other: Collection[Any]) -> bool:
    """Whether two collections are of the same objects; nothing is hashed or compared."""
    return len(one) == len(other) and all(map(is_, one, other))


def replace_entries(live: dict[str, Any], entries: dict[str, Any]) -> None:
    """Makes a dict hold other entries. It stays the same dict, so that state dicts show them."""
    live.update(entries)
    if len(live) > len(entries):
        for key in live.keys() - entries.keys():
            del live[key]


def run_writes(writes: Sequence[Write | Later], finish: Callable[[], None]) -> None:
    """Writes all parameters, or none of them, whatever is raised on the way; then finishes.

    What comes in the middle, once a parameter is written, as interrupts may, waits until the rest
    are written and ``finish`` was called. Then the first of it is raised.

    Args:
        writes: The operations; or functions that make some of them when it is their turn, so that
            what these need is not there before, nor after.
        finish: What is done at last.

    Raises:
        StepError: If an operation failed in the middle, and again when it was tried once more.
    """
    queue = deque([*writes, Write(NOTHING, finish)])
    done = 0
    waiting: BaseException | None = None
    while queue:
        each = queue.popleft()
        if isinstance(each, Write):
            waiting = _run(each, done, waiting)
            done += 1
        else:
            made: list[Write | Later] = []
            waiting = _run(Write(NOTHING, partial(_make, each, made)), done, waiting)
            queue.extendleft(reversed(made))
    if waiting is not None:
        raise waiting


def _make(later: Later, made: list[Write | Later]) -> None:
    made[:] = later()


def _run(write: Write, done: int, waiting: BaseException | None) -> BaseException | None:
    """Runs an operation, again if need be; returns what was raised first."""
    target, run, has_written = write
    version, failures = target._version, 0
    while True:
        try:
            run()
            return waiting
        except BaseException as error:
            # If so, it was raised behind the operation.
            written = has_written() if has_written else target._version != version
            if not done and not written:
                raise
            failures += isinstance(error, Exception)
            if failures == 2 and not written:
                raise _torn(done, error) from error
            waiting = waiting or error
            if written:
                return waiting


def _torn(done: int, error: BaseException) -> StepError:
    return StepError(
        f"Of the operations that write parameters, {done} had run when the next one failed twice: "
        f"{error}. A "
        "step writes all or none, which was not possible. Load the last checkpoint."
    )


def make_buckets(sizes: Sequence[int], indices: Sequence[int], size: int) -> list[list[int]]:
    """Splits indices, each of which has a size, into runs of at most that size, or of one."""
    buckets: list[list[int]] = []
    left = 0
    for i in indices:
        if not buckets or sizes[i] > left:
            buckets.append([])
            left = size
        buckets[-1].append(i)
        left -= sizes[i]
    return buckets
