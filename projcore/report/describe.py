"""Describes an optimizer before it runs: its plan, the shapes inside, the bytes of its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore._pairs import values_of
from projcore.engine.gather import gathered
from projcore.engine.making import Plan, Row, parameter_names, rows
from projcore.ops import is_sharded
from projcore.report.nodes import step_lines
from projcore.report.sums import step_sums, without_storage

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


def describe(optimizer: Optimizer) -> str:
    """Returns a table of the parameters, one of the modules, and the nodes of a step.

    In this step, each parameter that takes part has a gradient.
    """
    plan = optimizer.plan_of(optimizer.param_groups)
    module_rows = rows(plan, optimizer._names.modules)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = plan.expected(len(parameters))
    parameter_table: list[tuple[str, ...]] = [
        (
            *("parameter", "shape", "dtype", "group", "route", "inside", "takes part"),
            *("owner", "state bytes", "note"),
        )
    ]
    names = parameter_names(optimizer.param_groups)
    owners = _owners(plan)
    index = 0
    present = optimizer._present(parameters)
    for number, group in enumerate(optimizer.param_groups):
        notes = values_of(group, "param_notes", "")
        for parameter, note in zip(group["params"], notes, strict=True):
            entries = optimizer.state.get(parameter) or expected[index]
            parameter_table.append(
                (
                    names[index] or str(index),
                    "lazy" if is_lazy(parameter) else _shape(parameter.shape),
                    str(parameter.dtype).removeprefix("torch."),
                    str(number),
                    _routes(module_rows, index),
                    _inside(module_rows, index),
                    "" if present[index] or is_lazy(parameter) else "no, frozen",
                    owners.get(index, "all, in parts" if is_sharded(parameter) else ""),
                    f"{count_bytes(entries):,}",
                    note,
                )
            )
            index += 1
    parameter_table = _without_empty(parameter_table)
    module_table = [("position", "module", "runs on")]
    for row in module_rows:
        depth = row.path.count("/modules/")
        module_table.append((row.path, "  " * depth + label(row), _shapes(row.shapes)))
    mode = "eager" if optimizer.compile is False else "compiled"
    if optimizer.bucket_bytes is not None:
        mode += f", in buckets of {optimizer.bucket_bytes:,} bytes"
    if optimizer.in_backward:
        mode += ", of each parameter in the backward pass"
    nodes = "\n".join([f"Steps run {mode}:", *_node_lines(plan, parameters)])
    sections = [as_table(parameter_table), as_table(module_table), nodes]
    if any(map(is_sharded, parameters)):
        sections.append("\n".join(_traffic_lines(optimizer, parameters)))
    return "\n\n".join(sections)


def _traffic_lines(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Iterator[str]:
    """Yields the collectives of a step and the bytes that this process sends in them."""
    plan = optimizer.plan_of(optimizer.param_groups)
    to_owners = [sum(node.projection.sent) for node in gathered(plan.region)]
    sums = step_sums(optimizer, plan, list(map(without_storage, parameters)))
    reductions = [reduction for each in sums for reduction in each.reductions]
    total = sum(to_owners) + sum(each.sent for each in reductions)
    least = "" if all(each.known for each in sums) else "at least "
    yield f"In a step, this process sends {least}{total:,} bytes:"
    for count in to_owners:
        yield f"  to owners, and from them: {count:,} bytes"
    yield from (f"  {each}" for each in sums)


@torch.no_grad()
def _node_lines(plan: Plan, parameters: Sequence[Tensor]) -> list[str]:
    """Returns the lines of the nodes of a plan, indented."""
    targets = [parameters[i].detach() for i in plan.members]
    return [f"  {line}" for line in step_lines(plan.region, targets)]


def _routes(module_rows: Sequence[Row], index: int) -> str:
    """Returns the children that process a parameter's tensors, for modules that choose one."""
    texts = [
        f"{row.path}: {route}"
        for row in module_rows
        for source, route in zip(row.parameter_indices, row.routes, strict=False)
        if index in source
    ]
    return ", ".join(dict.fromkeys(texts))


def _inside(module_rows: Sequence[Row], index: int) -> str:
    """Returns the shapes of a parameter's tensors inside the innermost projection."""
    shapes: list[tuple[int, ...]] = []
    for row in module_rows:
        if "modules" in row.module.children:
            pairs = zip(row.shapes, row.parameter_indices, strict=False)
            shapes = [shape for shape, source in pairs if index in source] or shapes
    return _shapes(shapes) if shapes else ""


def _owners(plan: Plan) -> dict[int, str]:
    """Returns, for each sharded parameter that is gathered, the process that owns it."""
    return {
        index: f"{owner} of {len(node.transfer.team)}"
        for node in gathered(plan.region)
        for (index,), owner in zip(node.space.parameter_indices, node.transfer.owners, strict=True)
    }


def _without_empty(table: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Removes the columns that have only a header."""
    columns = [i for i in range(len(table[0])) if any(row[i] for row in table[1:])]
    return [tuple(row[i] for i in columns) for row in table]


def count_bytes(entries: Mapping[str, Any]) -> int:
    """Returns the bytes of the storages of a parameter's state, each counted once.

    Counts of many parameters may share a storage, so 0-d tensors count by their own bytes.
    """
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    counts = [tensor for tensor in tensors if tensor.ndim == 0]
    others = storages(tensor for tensor in tensors if tensor.ndim > 0)
    return sum(x.nbytes for x in counts) + sum(storage.nbytes() for storage in others)


def storages(tensors: Iterable[Tensor]) -> set[torch.UntypedStorage]:
    """Returns the storages of tensors, each once; on the device ``meta`` they have a size, too."""
    return {part.untyped_storage() for tensor in tensors for part in parts(tensor)}


def parts(tensor: Tensor) -> list[Tensor]:
    """Returns a tensor, or the tensors that it wraps, such as the local shard of a `DTensor`."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    wrapped = [getattr(tensor, name) for name in names]  # may include a mesh
    return [part for each in wrapped if isinstance(each, Tensor) for part in parts(each)]


def label(row: Row) -> str:
    """Returns a module as text, without the modules inside, which have rows of their own."""
    text = str(row.module)
    inside = str(row.module.children["modules"]) if "modules" in row.module.children else ""
    if not inside:
        return text
    listed = inside if inside.startswith("[") else f"[{inside.replace('; ', ', ')}]"
    return text.replace(listed, "[...]")


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    if not shapes:
        return "known after the first step"
    counted: dict[str, int] = {}
    for shape in shapes:
        counted[_shape(shape)] = counted.get(_shape(shape), 0) + 1
    texts = [shape if count == 1 else f"{count} of {shape}" for shape, count in counted.items()]
    return ", ".join(texts[:4]) + (f", and {len(texts) - 4} more" if len(texts) > 4 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as text in columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
