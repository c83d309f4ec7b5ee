"""The command ``projcore plan``: estimates the memory of optimizer states from shapes."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import projcore
from projcore.errors import ArgumentError, ProjcoreError, StepSizeWarning, suggest
from projcore_lab.llama import LLAMA, Shapes

Params = list[tuple[str, nn.Parameter]]

ADAMW = 2
"""Tensors that AdamW keeps for each parameter, in its dtype; beside them its counts are nothing."""


def plan(arguments: Namespace) -> int:
    """Runs the command; returns its exit code, which is 0.

    Raises:
        ArgumentError: If the model or an optimizer is invalid; then nothing was printed.
    """
    shapes = read_model(arguments.model)
    data = estimate(arguments.model, shapes, arguments.spec, arguments.dtype, arguments.ranks)
    if arguments.json:
        print(json.dumps(data, indent=2))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(heading(data), markup=False, highlight=False)
    console.print(table(data))
    for line in notes(data):
        console.print(line, markup=False, highlight=False)
    return 0


def read_model(model: str) -> Shapes:
    """Returns the shapes of a model, given its name or a JSON file of names and shapes."""
    if model in LLAMA:
        return LLAMA[model].shapes()
    try:
        text = Path(model).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{model!r} is neither a built-in model nor a readable file: {error}."
            f"{suggest(model, LLAMA)} Pass one of {', '.join(LLAMA)}, or a JSON file."
        ) from error
    try:
        shapes = json.loads(text)
    except ValueError as error:
        raise ArgumentError(
            f"{model} is not valid JSON: {error}. It must map the names of parameters to shapes: "
            '{"name": [rows, columns], ...}.'
        ) from error
    if not isinstance(shapes, dict) or not shapes:
        raise ArgumentError(
            f"{model} does not contain a non-empty object. It must map the names of parameters to "
            'shapes: {"name": [rows, columns], ...}.'
        )
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(
            type(length) is int and length >= 0 for length in shape
        ):
            raise ArgumentError(
                f"{model} has {shape!r} for {name!r}. A shape must be a list of integers, at "
                "least 0, for example [512, 64]."
            )
    return {name: tuple(shape) for name, shape in shapes.items()}


def estimate(
    model: str, shapes: Shapes, specs: Sequence[str], dtype: str, ranks: int | None = None
) -> dict[str, Any]:
    """Returns the size of each optimizer's state for a model, as JSON; nothing is allocated.

    Each is built on parameters without storage, and estimated by `projcore.Optimizer.memory` and,
    with `ranks`, `projcore.Optimizer.sharding`.
    """
    optimizers = []
    for spec in dict.fromkeys(specs):
        params = parameters(shapes, dtype)
        optimizer = make(spec, params)
        memory = optimizer.memory()
        baseline = ADAMW * sum(param.nbytes for _, param in params)
        optimizers.append(
            {
                "spec": spec,
                "state_bytes": memory.state,
                "of_adamw": memory.state / baseline if baseline else None,
                "rows": [asdict(row) for row in memory.rows],
                "notes": list(memory.notes),
                **({} if ranks is None else sharded(spec, optimizer, ranks)),
            }
        )
    weights = sum(param.nbytes for _, param in params)
    return {
        "model": model,
        "dtype": dtype,
        "ranks": ranks,
        "tensors": len(params),
        "parameters": sum(param.numel() for _, param in params),
        "weight_bytes": weights,
        "gradient_bytes": weights,
        "adamw_bytes": ADAMW * weights,
        "optimizers": optimizers,
    }


def sharded(spec: str, optimizer: projcore.Optimizer, ranks: int) -> dict[str, Any]:
    """Returns the largest state, and communication in a step, of any of several processes."""
    try:
        found = optimizer.sharding(ranks)
    except ProjcoreError as error:
        raise ArgumentError(f"{spec!r} cannot be sharded (--ranks): {error}") from error
    return {"rank_state_bytes": max(found.state), "rank_sent_bytes": max(found.sent)}


def parameters(shapes: Shapes, dtype: str) -> Params:
    """Returns named parameters of these shapes, without storage."""
    kind = getattr(torch, dtype)
    return [
        (name, nn.Parameter(torch.empty(shape, dtype=kind, device="meta")))
        for name, shape in shapes.items()
    ]


def make(spec: str, params: Params) -> projcore.Optimizer:
    """Returns the optimizer of a spec, or of a recipe such as ``"galore_adamw(rank=128)"``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StepSizeWarning)  # it takes no step
            optimizer = projcore.create_optimizer(params, spec)
    except ProjcoreError as error:
        raise ArgumentError(f"{spec!r} cannot be built: {error}") from error
    except (NotImplementedError, RuntimeError) as error:
        raise ArgumentError(
            f"{spec!r} cannot be planned: {error}. It reads the values of parameters, which do "
            "not exist yet. Build it on the model, and call its memory()."
        ) from error
    if not isinstance(optimizer, projcore.Optimizer):
        raise ArgumentError(
            f"{spec!r} cannot be planned: it makes a {type(optimizer).__name__}. Memory can be "
            "estimated before a step only for a projcore.Optimizer. Use another recipe, or the "
            "modules that it consists of."
        )
    return optimizer


def heading(data: Mapping[str, Any]) -> str:
    """Returns a summary of the model."""
    return (
        f"{data['model']}: {data['parameters']:,} parameters in {data['tensors']} tensors, "
        f"{data['dtype']}\n"
        f"weights {_mib(data['weight_bytes'])} MiB, gradients {_mib(data['gradient_bytes'])} MiB, "
        f"AdamW's state {_mib(data['adamw_bytes'])} MiB\n"
    )


def table(data: Mapping[str, Any]) -> Table:
    """Returns a table with a section for each optimizer: its entries, then the sum."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    result.add_column("optimizer", overflow="fold")
    result.add_column("entry", overflow="fold")
    for header in ("tensors", "MiB", "of AdamW"):
        result.add_column(header, justify="right", no_wrap=True)
    adamw = data["adamw_bytes"]
    for optimizer in data["optimizers"]:
        result.add_row(
            f"[bold]{escape(optimizer['spec'])}[/bold]",
            "state",
            f"{sum(row['tensors'] for row in optimizer['rows']):,}",
            _mib(optimizer["state_bytes"]),
            _share(optimizer["state_bytes"], adamw),
        )
        for row in optimizer["rows"]:
            result.add_row(
                f"  {row['path']} {escape(row['module'])}",
                escape(row["entry"]),
                f"{row['tensors']:,}",
                _mib(row["bytes"]),
                _share(row["bytes"], adamw),
            )
        if data["ranks"] is not None:
            each = f"  each of {data['ranks']:,} processes"
            kept, sent = optimizer["rank_state_bytes"], optimizer["rank_sent_bytes"]
            result.add_row(each, "keeps", "", _mib(kept), _share(kept, adamw))
            result.add_row("", "sends in a step", "", _mib(sent), "")
        result.add_section()
    return result


def notes(data: Mapping[str, Any]) -> list[str]:
    """Returns notes on the table, in sentences."""
    lines = [
        f"{optimizer['spec']}: {note}"
        for optimizer in data["optimizers"]
        for note in optimizer["notes"]
    ]
    if data["ranks"] is not None:
        apart = data["weight_bytes"] * (data["ranks"] - 1) / data["ranks"]
        lines.append(
            f"The model itself sends {_mib(round(3 * apart))} MiB more from each process in a "
            "step, by two all-gathers and a reduce-scatter."
        )
    return [*lines, "Activations, and temporaries of a step, are not included."]


def _mib(count: int) -> str:
    amount = count / 2**20
    return "<0.01" if 0 < amount < 0.01 else f"{amount:,.2f}"


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else "–"
