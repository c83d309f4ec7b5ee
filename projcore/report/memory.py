"""What an optimizer's state takes, by component: counted, or estimated before the first step."""

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
from projcore.report.describe import as_table, head, parts, storages

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


@dataclass(frozen=True)
class MemoryRow:
    """What one entry of a module takes, over all tensors that the module works on.

    Attributes:
        path: The position of the module.
        module: The module, without what it runs inside.
        entry: The entry's name, such as ``"exp_avg"``.
        tensors: How many tensors there are.
        bytes: The whole size of the storages behind them. A storage that several entries share is
            counted in the first; one that a parameter holds, with the parameters.
        unused: How many of these bytes no tensor of the state shows. A few columns cut from a
            matrix keep all of it.
    """

    path: str
    module: str
    entry: str
    tensors: int
    bytes: int
    unused: int


@dataclass(frozen=True)
class Memory:
    """What an optimizer's state takes, with what the parameters and their gradients take beside it.

    All in bytes of storages, on all devices together; of sharded tensors, the part in this process.
    Activations, and what a step needs while it runs, are not in it.

    Attributes:
        rows: What each entry of each module takes.
        parameters: Bytes of the parameters.
        gradients: Bytes of the gradients; of a parameter that has none now, what it will take.
        estimated: Whether there is no state yet, so that `rows` is the state to come, once every
            parameter has had a gradient.
        unknown: The modules of which that is only known after the first step: `rows` lacks what
            they run inside.
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
        """What the numbers do not say by themselves, in sentences."""
        return (
            *(
                f"{row.entry} of {row.module} at {row.path} keeps storages of {row.bytes:,} bytes, "
                f"of which {row.unused:,} are in no tensor of the state."
                for row in self.rows
                if row.unused
            ),
            *(
                f"What {module} will keep is not known before the first step, and not all counted."
                for module in self.unknown
            ),
        )

    def __str__(self) -> str:
        """A table of the rows, and sentences."""
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
    """Returns what an optimizer's state takes, or while there is none, what it will take."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    memory: list[Mapping[str, Any]] = [optimizer.state.get(p, {}) for p in parameters]
    estimated = not any(memory)
    lines: list[Row] = []
    if estimated:
        plan = optimizer.plan_of(optimizer.param_groups)
        memory = list(plan.expected(len(parameters)))
        lines = rows(plan, optimizer._names.modules)
    entries = [
        ((module_path(key), key.rpartition("/")[2]), value)
        for each in memory
        for key, value in each.items()
        if isinstance(value, Tensor)
    ]
    weights = storages(p for p in parameters if not is_lazy(p))
    state = storages(value for _, value in entries) - weights
    gradients = storages(p.grad for p in parameters if p.grad is not None) - weights - state
    to_come = [p for p in parameters if p.grad is None and p.requires_grad and not is_lazy(p)]
    return Memory(
        rows=tuple(_rows(optimizer._names.modules, entries, state)),
        parameters=_size(weights),
        gradients=_size(gradients) + sum(part.nbytes for p in to_come for part in parts(p)),
        estimated=estimated,
        unknown=(
            *(f"{head(row)} at {row.path}" for row in lines if not row.shapes),
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
    """Yields a row for each entry of each module, which counts those storages of `state`."""
    first: dict[torch.UntypedStorage, tuple[str, str]] = {}
    shown: Counter[torch.UntypedStorage] = Counter()
    for entry, tensor in entries:
        for part in parts(tensor):
            first.setdefault(part.untyped_storage(), entry)
            shown[part.untyped_storage()] += part.nbytes
    size: Counter[tuple[str, str]] = Counter()
    unused: Counter[tuple[str, str]] = Counter()
    for storage in state:
        size[first[storage]] += storage.nbytes()
        unused[first[storage]] += max(0, storage.nbytes() - shown[storage])
    order = {path: i for i, path in enumerate(modules)}
    tensors = Counter(entry for entry, _ in entries)
    for entry in sorted(tensors, key=lambda entry: order[entry[0]]):
        path, name = entry
        module = head(Row(path, modules[path]))
        yield MemoryRow(path, module, name, tensors[entry], size[entry], unused[entry])


def _size(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)
