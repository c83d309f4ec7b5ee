"""The command ``projcore compare``: trains, shows progress, then reports."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from projcore.errors import ArgumentError, ProjcoreError
from projcore_lab import plot, report
from projcore_lab.comparison import Comparison, Result, versions
from projcore_lab.digits import Digits
from projcore_lab.functions import FUNCTIONS, FunctionTask
from projcore_lab.lineup import Contender, learning_rate, lineup
from projcore_lab.logistic import Logistic
from projcore_lab.runs import Closure, OnStep, Run, train
from projcore_lab.store import Store
from projcore_lab.target import calibrate
from projcore_lab.tasks import Task
from projcore_lab.text import BATCH, Text
from projcore_lab.tune import Trial, best, next_rate

FAILED = 1
INTERRUPTED = 130
RUNS = "runs.jsonl"
TEXT_ONLY = {"text": None, "size": "small", "batch": BATCH}  # options and their defaults


def compare(arguments: Namespace) -> int:
    """Runs the command; returns its exit code.

    0 if all went well (a run that diverged is a result), 1 if an optimizer raised an error, 130 if
    the user interrupted; what was finished is kept.

    Raises:
        ArgumentError: If anything given is refused; then nothing was trained or written.
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
        work = Work(arguments, task, console)
        comparison = Comparison(task, work.settings)
        interrupted = work.run_all(comparison, contenders)
        goal = task.goal if arguments.target is None else arguments.target
        if goal is not None and comparison.results:
            comparison.target = calibrate(goal, comparison.results)
        files = save(comparison, arguments.output)
    finally:
        torch.set_num_threads(threads)
    if interrupted:
        console.print(
            f"Interrupted. What is finished is kept in {arguments.output}; "
            "the same command with --resume goes on from there.",
            **PLAIN,
        )
        return INTERRUPTED
    show(comparison, files, console)
    return FAILED if any(each.status == "failed" for each in comparison.results) else 0


PLAIN: Any = {"markup": False, "highlight": False, "soft_wrap": True}


def make_task(arguments: Namespace, seed: int) -> Task:
    """Returns the task that was asked for."""
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


def check(task: Task, contenders: Sequence[Contender]) -> None:
    """Builds each optimizer once, so that a wrong spec is refused before any training."""
    for contender in contenders:
        try:
            contender.optimizer(task.model())
        except ProjcoreError as error:
            raise ArgumentError(f"{contender.name!r} is refused: {error}") from error


def open_store(folder: Path, resume: bool) -> Store:
    """Returns where the runs are kept; results that are there are not overwritten.

    Raises:
        ArgumentError: If the folder cannot be made, or has results and `resume` is false.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"--output {folder} cannot be made: {error}. It is a folder for the results. "
            "Name another."
        ) from error
    there = [name for name in (RUNS, *FILES) if (folder / name).exists()]
    if there and not resume:
        raise ArgumentError(
            f"--output {folder} has results already: {', '.join(there)}. They are not overwritten. "
            "Pass --resume to go on from the runs in it, or name another folder with --output."
        )
    return Store(folder / RUNS, versions())


class Work:
    """Trains contenders, but takes the runs that are finished from the store.

    Attributes:
        settings: What the user asked for, by option.
    """

    def __init__(self, arguments: Namespace, task: Task, console: Console) -> None:
        self.settings: dict[str, Any] = {
            "steps": arguments.steps or task.steps,
            "schedule": arguments.schedule,
            "seed": arguments.seed,
            "seeds": arguments.seeds,
            "threads": torch.get_num_threads(),
            "lr": arguments.lr,
            "tune": arguments.tune,
        }
        self._store = open_store(arguments.output, arguments.resume)
        self._arguments = arguments
        self._tasks: dict[int, Task] = {task.seed: task}
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=5,
            disable=not console.is_terminal,
        )

    def run_all(self, comparison: Comparison, contenders: Sequence[Contender]) -> bool:
        """Adds the results of all contenders; returns True if the user interrupted it."""
        comparison.missing = [contender.name for contender in contenders]
        try:
            warm_up(comparison.task)
            with self._bars:
                for contender in contenders:
                    result = self._result(comparison.task, contender)
                    comparison.results.append(result)
                    comparison.missing.remove(result.name)
                    if self._bars.disable:
                        self._console.print(report.line(result), **PLAIN)
        except KeyboardInterrupt:
            return True
        return False

    def _result(self, task: Task, contender: Contender) -> Result:
        """Trains a contender with each seed, after finding its rate if that was asked for.

        Rates are tried on a seed of their own, so that no contender is at an advantage because
        its rate was chosen for the luck that it had on the seeds that count.
        """
        trials: list[Trial] = []
        own = learning_rate(contender.optimizer(task.model()))
        rates = self.settings["tune"] if own is not None else 0
        bar = self._bar(contender.name, self.settings["steps"], rates + self.settings["seeds"])
        while own is not None and len(trials) < rates:
            lr = next_rate(trials, own)
            candidate = dataclasses.replace(contender, lr=lr)
            run = self._run(candidate, task.seed - 1, next(bar), checks=0)
            trials.append(Trial(lr, run.final.loss if run.final else None))
        if trials:
            contender = dataclasses.replace(contender, lr=best(trials).lr)
        seeds = range(task.seed, task.seed + self.settings["seeds"])
        runs = [self._run(contender, seed, move) for move, seed in zip(bar, seeds, strict=True)]
        return Result(contender.name, contender.spec, runs, trials)

    def _run(
        self, contender: Contender, seed: int, on_step: OnStep, checks: int | None = None
    ) -> Run:
        """Returns a run from the store, or else trains and keeps it."""
        task = self._task(seed)
        steps, schedule = self.settings["steps"], self.settings["schedule"]
        key = {
            "task": {"name": task.name, **task.options},
            "seed": seed,
            "spec": contender.spec,
            "lr": learning_rate(contender.optimizer(task.model())),
            "steps": steps,
            "schedule": schedule,
            "checks": checks,
            "threads": self.settings["threads"],
        }
        run = self._store.find(key)
        if run is None:
            run = train(task, contender, steps, schedule, checks, on_step)
            if run.status != "failed":
                self._store.add(key, run)
        return run

    def _task(self, seed: int) -> Task:
        if seed not in self._tasks:
            self._tasks[seed] = make_task(self._arguments, seed)
        return self._tasks[seed]

    def _bar(self, name: str, steps: int, runs: int) -> Iterator[OnStep]:
        """Adds a bar; yields for each run what moves it after a step."""
        bar = self._bars.add_task(name, total=steps * runs, loss="")
        for number in range(runs):

            def move(step: int, loss: float, done: int = steps * number) -> None:
                self._bars.update(bar, completed=done + step, loss=f"loss {loss:.4g}")

            yield move
        self._bars.update(bar, completed=steps * runs)


def warm_up(task: Task) -> None:
    """Makes the passes that are slow because they are the first, so that no contender pays."""
    model = task.model()
    closure = Closure(task, model)
    closure.batch = task.batch(0)
    for _ in range(3):
        closure()
    task.validate(model)


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes what is finished; returns all files there are now."""
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
    """Prints the table, what its columns are, what to read from it, and the files."""
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
