"""The bytes of an optimizer's state, by module: measured, or estimated before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore.core.module import Module
from projcore.engine.flat import module_path
from projcore.engine.making import Row, rows
from projcore.report.describe import as_table, label, parts, storages

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


@dataclass(frozen=True)
class MemoryRow:
    """The bytes of one state entry of a module, over all its tensors.

    Attributes:
        path: The position of the module.
        module: The module as text, without the modules inside.
        entry: The entry's name, such as ``"exp_avg"``.
        tensors: The number of tensors.
        bytes: The full size of their storages. A storage that several entries share is counted in
            the first; one that is shared with a parameter, with the parameters.
        unused: The number of these bytes that are in no tensor of the state: a view of a few
            columns of a matrix keeps all of its storage.
    """

    path: str
    module: str
    entry: str
    tensors: int
    bytes: int
    unused: int


@dataclass(frozen=True)
class Memory:
    """The bytes of an optimizer's state, and of the parameters and their gradients.

    All numbers are bytes of storages, on all devices together; sharded tensors count by their local
    shards. Activations and the temporaries of a step are not included.

    Attributes:
        rows: The bytes of each state entry of each module.
        parameters: Bytes of the parameters.
        gradients: Bytes of the gradients, also of those that do not exist yet.
        estimated: Whether there is no state yet, so that `rows` is an estimate of the state after
            every parameter has had a gradient.
        unknown: The modules whose state is known only after the first step; `rows` lacks the
            modules inside them.
    """

    rows: tuple[MemoryRow, ...]
    parameters: int
    gradients: int
    estimated: bool
    unknown: tuple[str, ...] = ()

    @property
    def state(self) -> int:
        """Bytes of the state."""
        return sum(row.bytes for row in self.rows)

    @property
    def total(self) -> int:
        """Bytes of state, parameters and gradients."""
        return self.state + self.parameters + self.gradients

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about storage that is not used, and state that is not counted."""
        return (
            *(
                f"{row.entry} of {row.module} at {row.path} has storages of {row.bytes:,} bytes, "
                f"of which {row.unused:,} are in no tensor of the state."
                for row in self.rows
                if row.unused
            ),
            *(
                f"The state of {module} is known only after the first step, and not all counted."
                for module in self.unknown
            ),
        )

    def __str__(self) -> str:
        """A table of the rows, and sentences about them."""
        table = [("position", "module", "entry", "tensors", "bytes")]
        for row in self.rows:
            numbers = f"{row.tensors:,}", f"{row.bytes:,}"
            table.append((row.path, row.module, row.entry, *numbers))
        tense = "will take" if self.estimated else "takes"
        lines = [
            f"The state {tense} {self.state:,} bytes, beside {self.parameters:,} of parameters and "
            f"{self.gradients:,} of gradients.",
            *self.notes,
        ]
        return "\n".join([f"{as_table(table)}\n", *lines] if self.rows else lines)


def measure(optimizer: Optimizer) -> Memory:
    """Returns the bytes of an optimizer's state, estimated if there is none yet."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: list[Mapping[str, Any]] = [optimizer.state.get(p, {}) for p in parameters]
    estimated = not any(states)
    plan_rows: list[Row] = []
    if estimated:
        plan = optimizer.plan_of(optimizer.param_groups)
        states = list(plan.expected(len(parameters)))
        plan_rows = rows(plan, optimizer._names.modules)
    entries = [
        ((module_path(key), key.rpartition("/")[2]), value)
        for each in states
        for key, value in each.items()
        if isinstance(value, Tensor)
    ]
    weights = storages(p for p in parameters if not is_lazy(p))
    state = storages(value for _, value in entries) - weights
    gradients = storages(p.grad for p in parameters if p.grad is not None) - weights - state
    missing = [p for p in parameters if p.grad is None and p.requires_grad and not is_lazy(p)]
    return Memory(
        rows=tuple(_rows(optimizer._names.modules, entries, state)),
        parameters=_size(weights),
        gradients=_size(gradients) + sum(part.nbytes for p in missing for part in parts(p)),
        estimated=estimated,
        unknown=(
            *(f"{label(row)} at {row.path}" for row in plan_rows if not row.shapes),
            *(
                f"the optimizer for lazy parameter {i}"
                for i, p in enumerate(parameters)
                if is_lazy(p)
            ),
        ),
    )


def _rows(
    modules: Mapping[str, Module],
    entries: Sequence[tuple[tuple[str, str], Tensor]],
    state: set[torch.UntypedStorage],
) -> Iterator[MemoryRow]:
    """Yields a row for each entry of each module, which counts the storages in `state` only."""
    first: dict[torch.UntypedStorage, tuple[str, str]] = {}
    used: Counter[torch.UntypedStorage] = Counter()
    for entry, tensor in entries:
        for part in parts(tensor):
            first.setdefault(part.untyped_storage(), entry)
            used[part.untyped_storage()] += part.nbytes
    size: Counter[tuple[str, str]] = Counter()
    unused: Counter[tuple[str, str]] = Counter()
    for storage in state:
        size[first[storage]] += storage.nbytes()
        unused[first[storage]] += max(0, storage.nbytes() - used[storage])
    order = {path: i for i, path in enumerate(modules)}
    tensors = Counter(entry for entry, _ in entries)
    for entry in sorted(tensors, key=lambda entry: order[entry[0]]):
        path, name = entry
        module = label(Row(path, modules[path]))
        yield MemoryRow(path, module, name, tensors[entry], size[entry], unused[entry])


def _size(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)
