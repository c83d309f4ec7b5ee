"""Describes an optimizer before it runs: its plan, the shapes inside, the memory to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projcore.core.module import Row
from projcore.core.objective import RootObjective
from projcore.core.state import Node, State, flatten

if TYPE_CHECKING:
    from projcore.core.optimizer import Optimizer


def outline(
    optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], rows: list[Row] | None = None
) -> list[Node]:
    """Runs the plan on tensors without storage; returns the memory it would make, for each tensor.

    Projections learn their maps on such tensors too, so what refuses the parameters does so here.
    """
    stand_ins = [torch.empty_like(p, device="meta") for group in groups for p in group["params"]]
    objective = RootObjective(
        stand_ins,
        stand_ins,
        [i for i, group in enumerate(groups) for _ in group["params"]],
        optimizer._names.table(groups),
        elide=optimizer._elide,
    )
    trees: list[Node] = [{} for _ in stand_ins]
    with torch.no_grad():
        optimizer.module.prepare(
            objective, State(trees, trees[0] if trees else {}), [] if rows is None else rows
        )
    return trees


def describe(optimizer: Optimizer) -> str:
    """Returns a table of the parameters and one of the plan."""
    rows: list[Row] = []
    trees = outline(optimizer, optimizer.param_groups, rows)
    parameters = [("parameter", "shape", "dtype", "group", "state bytes")]
    index = 0
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names", range(index, index + len(group["params"])))
        for name, parameter in zip(names, group["params"], strict=True):
            memory = optimizer.state.get(parameter) or flatten(trees[index])
            dtype = str(parameter.dtype).removeprefix("torch.")
            size = f"{count_bytes(memory):,}"
            parameters.append((str(name), _shape(parameter.shape), dtype, str(number), size))
            index += 1
    plan = [("position", "module", "runs on")]
    for row in rows:
        depth = row.path.count("/modules/")
        plan.append((row.path, "  " * depth + _head(row), _shapes(row.shapes)))
    mode = "compiled" if optimizer.compiles else "eager"
    if optimizer.compile and not optimizer.compiles:
        mode += f", because of {_untraceable(optimizer)}"
    return f"{_table(parameters)}\n\n{_table(plan)}\n\nSteps run {mode}."


def _untraceable(optimizer: Optimizer) -> str:
    """The modules that are not traceable themselves, beside what they run inside."""
    modules = optimizer._names.modules.values()
    reasons = {
        f"{type(each).__name__}, which {'evaluates the loss' if closure else 'branches'}"
        for each in modules
        if (closure := "closure" in each.needs) or not each.traceable
    }
    return " and ".join(sorted(reasons))


def count_bytes(memory: Mapping[str, Any]) -> int:
    """Returns the bytes that the tensors of a state hold, each storage counted once."""
    storages: dict[int, int] = {}
    total = 0
    for value in memory.values():
        if isinstance(value, Tensor) and value.is_meta:
            total += value.numel() * value.element_size()
        elif isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return total + sum(storages.values())


def _head(row: Row) -> str:
    """The module without what it runs inside, which has lines of its own."""
    text = str(row.module)
    inside = str(row.module.children["modules"]) if "modules" in row.module.children else ""
    return text.replace(f"[{inside.replace('; ', ', ')}]", "[...]") if inside else text


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    if not shapes:
        return "known after the first step"
    counted: dict[str, int] = {}
    for shape in shapes:
        counted[_shape(shape)] = counted.get(_shape(shape), 0) + 1
    texts = [shape if count == 1 else f"{count} of {shape}" for shape, count in counted.items()]
    return ", ".join(texts[:4]) + (f", and {len(texts) - 4} more" if len(texts) > 4 else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
