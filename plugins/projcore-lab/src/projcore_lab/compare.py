"""The command ``projcore compare``: trains, shows progress, then reports."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from projcore.errors import ArgumentError, ProjcoreError
from projcore_lab import plot, report
from projcore_lab.comparison import Comparison, versions
from projcore_lab.digits import Digits
from projcore_lab.functions import FUNCTIONS, FunctionTask
from projcore_lab.lineup import Contender, lineup
from projcore_lab.logistic import Logistic
from projcore_lab.store import Store
from projcore_lab.target import calibrate
from projcore_lab.tasks import Task
from projcore_lab.text import BATCH, Text
from projcore_lab.work import PLAIN, Work

FAILED = 1
INTERRUPTED = 130
RUNS = "runs.jsonl"
TEXT_ONLY = {"text": None, "size": "small", "batch": BATCH}  # options and their defaults


def compare(arguments: Namespace) -> int:
    """Runs the command; returns its exit code.

    0 on success (a run that diverged is a result), 1 if an optimizer raised an error, 130 if the
    user interrupted it; finished runs are kept.

    Raises:
        ArgumentError: If an argument is invalid; then nothing was trained or written.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 120
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        task = make_task(arguments, arguments.seed)
        contenders = lineup(arguments.spec, task, arguments.lr)
        check(task, contenders)
        store = open_store(arguments.output, arguments.resume)
        comparison = Comparison(task, settings(arguments, task))
        work = Work(comparison, store, partial(make_task, arguments), console)
        interrupted = work.run_all(contenders)
        goal = task.goal if arguments.target is None else arguments.target
        if goal is not None and comparison.results:
            comparison.target = calibrate(goal, comparison.results)
        files = save(comparison, arguments.output)
    finally:
        torch.set_num_threads(threads)
    if interrupted:
        console.print(
            f"Interrupted. Finished runs are kept in {arguments.output}; "
            "the same command with --resume continues from there.",
            **PLAIN,
        )
        return INTERRUPTED
    show(comparison, files, console)
    return FAILED if any(each.status == "failed" for each in comparison.results) else 0


def make_task(arguments: Namespace, seed: int) -> Task:
    """Returns the requested task."""
    if arguments.task == "text":
        return Text(seed, arguments.text, arguments.size, arguments.batch)
    for option, default in TEXT_ONLY.items():
        value = getattr(arguments, option)
        if value != default:
            raise ArgumentError(
                f"--{option} {value} was given with the task {arguments.task!r}. "
                "Only the task 'text' takes one. Remove it, or compare on 'text'."
            )
    if arguments.task in FUNCTIONS:
        return FunctionTask(seed, arguments.task)
    return {"digits": Digits, "logistic": Logistic}[arguments.task](seed)


def settings(arguments: Namespace, task: Task) -> dict[str, Any]:
    """Returns the values of the user's options."""
    names = ("schedule", "seed", "seeds", "threads", "lr", "tune")
    return {
        "steps": arguments.steps or task.steps,
        **{name: getattr(arguments, name) for name in names},
    }


def check(task: Task, contenders: Sequence[Contender]) -> None:
    """Builds each optimizer once, so that an invalid spec is an error before any training."""
    for contender in contenders:
        try:
            contender.optimizer(task.model())
        except ProjcoreError as error:
            raise ArgumentError(f"{contender.name!r} cannot be built: {error}") from error


def open_store(folder: Path, resume: bool) -> Store:
    """Returns the store of the runs; existing results are not overwritten.

    Raises:
        ArgumentError: If the folder cannot be created, has results while `resume` is false, or has
            results without the runs to continue from.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"--output {folder} cannot be created: {error}. Name another folder for the results."
        ) from error
    there = [name for name in (RUNS, *FILES) if (folder / name).exists()]
    if there and not (resume and RUNS in there):
        advice = "Pass --resume to continue from its runs, or name" if RUNS in there else "Name"
        raise ArgumentError(
            f"--output {folder} has results already: {', '.join(there)}. They are not overwritten. "
            f"{advice} another folder with --output."
        )
    return Store(folder / RUNS, versions())


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the finished results; returns all files of the comparison."""
    files = [folder / RUNS]
    if comparison.results:
        data = json.dumps(comparison.as_json(), indent=1, allow_nan=False) + "\n"
        files.append(folder / "compare.json")
        files[-1].write_text(data, "utf-8")
        files += plot.save(plot.draw(comparison), folder / "compare")
    if any(result.trials for result in comparison.results):
        files += plot.save(plot.draw_rates(comparison), folder / "rates")
    return files


def show(comparison: Comparison, files: Sequence[Path], console: Console) -> None:
    """Prints the table with its legend, notes and verdict, and the files."""
    console.print(f"\n{comparison.task.description}", markup=False, highlight=False)
    console.print(report.table(comparison), "")
    console.print(report.legend(comparison), "")
    for line in report.notes(comparison):
        console.print(line, markup=False, highlight=False)
    for file in files:
        console.print(f"Wrote {file}", **PLAIN)


FILES = (
    "compare.json",
    *(f"{name}.{kind}" for name in ("compare", "rates") for kind in plot.KINDS),
)
