"""The command ``projcore compare``: trains, shows progress, then reports."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from projcore.errors import ArgumentError, ProjcoreError
from projcore_lab import plot, report
from projcore_lab.comparison import Comparison
from projcore_lab.digits import Digits
from projcore_lab.lineup import Contender, learning_rate, lineup
from projcore_lab.rosenbrock import Rosenbrock
from projcore_lab.runs import Closure, OnStep, Run, Trial, train
from projcore_lab.tasks import Task
from projcore_lab.text import Text
from projcore_lab.tune import GRID, trial_steps, tune

FAILED = 1
INTERRUPTED = 130


def compare(arguments: Namespace) -> int:
    """Runs the command; returns its exit code.

    0 if all went well (a run that diverged is a result), 1 if an optimizer raised an error, 130 if
    the user interrupted; what was finished is kept.

    Raises:
        ArgumentError: If anything given is refused; then nothing was trained or written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        task = make_task(arguments)
        contenders = lineup(arguments.spec, task, arguments.lr)
        check(task, contenders)
        make_folder(arguments.output)
        settings = {
            "steps": arguments.steps or task.steps,
            "seed": arguments.seed,
            "threads": torch.get_num_threads(),
            "lr": arguments.lr,
            "tune": arguments.tune,
        }
        comparison = Comparison(task, settings)
        console = Console()
        if not console.is_terminal:
            console.width = 120
        interrupted = run_all(comparison, contenders, console)
    finally:
        torch.set_num_threads(threads)
    write(comparison, arguments.output, console)
    if interrupted:
        return INTERRUPTED
    return FAILED if any(run.status == "failed" for run in comparison.runs) else 0


def make_task(arguments: Namespace) -> Task:
    """Returns the task that was asked for."""
    if arguments.task == "text":
        return Text(arguments.seed, arguments.text)
    if arguments.text:
        raise ArgumentError(
            f"--text {arguments.text} was given with the task {arguments.task!r}. "
            "Only the task 'text' takes one. Remove it, or compare on 'text'."
        )
    return {"digits": Digits, "rosenbrock": Rosenbrock}[arguments.task](arguments.seed)


def check(task: Task, contenders: Sequence[Contender]) -> None:
    """Builds each optimizer once, so that a wrong spec is refused before any training."""
    for contender in contenders:
        try:
            contender.optimizer(task.model())
        except ProjcoreError as error:
            raise ArgumentError(f"{contender.name!r} is refused: {error}") from error


def make_folder(folder: Path) -> None:
    """Makes the folder for the results, before they are worked for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"--output {folder} cannot be made: {error}. It is a folder for the results. "
            "Name another."
        ) from error


def run_all(comparison: Comparison, contenders: Sequence[Contender], console: Console) -> bool:
    """Trains all contenders; returns True if the user interrupted it."""
    warm_up(comparison.task)
    comparison.missing = [contender.name for contender in contenders]
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=5,
        disable=not console.is_terminal,
    )
    try:
        with bars:
            for contender in contenders:
                run = run_one(comparison, contender, bars)
                comparison.runs.append(run)
                comparison.missing.remove(run.name)
                if bars.disable:
                    console.print(report.line(run), markup=False, highlight=False)
    except KeyboardInterrupt:
        return True
    return False


def run_one(comparison: Comparison, contender: Contender, bars: Progress) -> Run:
    """Trains one contender, after finding its learning rate if that was asked for."""
    task, steps = comparison.task, comparison.settings["steps"]
    trials: list[Trial] = []
    own = learning_rate(contender.optimizer(task.model()))
    if comparison.settings["tune"] and own is not None:
        bar = add_bar(bars, f"{contender.name}: learning rate", trial_steps(steps) * len(GRID))
        contender, trials = tune(task, contender, own, steps, bar)
    run = train(task, contender, steps, add_bar(bars, contender.name, steps))
    run.trials = trials
    return run


def add_bar(bars: Progress, description: str, total: int) -> OnStep:
    """Adds a bar; returns what moves it after each step."""
    number = bars.add_task(description, total=total, loss="")

    def move(step: int, loss: float) -> None:
        bars.update(number, completed=step, loss=f"loss {loss:.4g}")

    return move


def warm_up(task: Task) -> None:
    """Makes the passes that are slow because they are the first, so that no contender pays."""
    model = task.model()
    closure = Closure(task, model)
    closure.batch = task.batch(0)
    for _ in range(3):
        closure()
    task.validate(model)


def write(comparison: Comparison, folder: Path, console: Console) -> None:
    """Shows the table and writes the files."""
    console.print(f"\n{comparison.task.description}", markup=False, highlight=False)
    console.print(report.table(comparison), "")
    for line in report.notes(comparison):
        console.print(line, markup=False, highlight=False)
    data = folder / "compare.json"
    data.write_text(json.dumps(comparison.as_json(), indent=1, allow_nan=False) + "\n", "utf-8")
    files = [data]
    if comparison.runs:
        picture = folder / "compare.png"
        plot.draw(comparison, picture)
        files.append(picture)
    for file in files:
        console.print(f"Wrote {file}", markup=False, highlight=False, soft_wrap=True)
