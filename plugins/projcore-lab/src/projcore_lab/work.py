"""The work of a comparison: runs for each contender, in order, with progress bars."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from projcore_lab import report
from projcore_lab.comparison import Comparison, Result
from projcore_lab.lineup import Contender, learning_rate
from projcore_lab.runs import Closure, OnStep, Run, train
from projcore_lab.store import Store
from projcore_lab.tasks import Task
from projcore_lab.tune import Trial, best, next_rate

PLAIN: Any = {"markup": False, "highlight": False, "soft_wrap": True}  # plain lines


class Work:
    """Trains contenders, and takes finished runs from the store.

    Args:
        comparison: Its settings are read, and the results are added to it.
        store: Runs that are finished, and those that will be.
        make_task: Returns the task with a seed.
        console: For progress.
    """

    def __init__(
        self,
        comparison: Comparison,
        store: Store,
        make_task: Callable[[int], Task],
        console: Console,
    ) -> None:
        self.comparison = comparison
        self.settings = comparison.settings
        self._store = store
        self._make_task = make_task
        self._tasks: dict[int, Task] = {comparison.task.seed: comparison.task}
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

    def run_all(self, contenders: Sequence[Contender]) -> bool:
        """Adds the results of all contenders; returns True if the user interrupted it."""
        comparison = self.comparison
        comparison.missing = [contender.name for contender in contenders]
        try:
            warm_up(comparison.task)
            with self._bars:
                for contender in contenders:
                    result = self._result(contender)
                    comparison.results.append(result)
                    comparison.missing.remove(result.name)
                    if self._bars.disable:
                        self._console.print(report.line(result), **PLAIN)
        except KeyboardInterrupt:
            return True
        return False

    def _result(self, contender: Contender) -> Result:
        """Trains a contender with each seed, after tuning its learning rate if requested.

        Rates are tuned on a separate seed, so that the reported runs are not selected by chance.
        """
        task = self.comparison.task
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
            self._tasks[seed] = self._make_task(seed)
        return self._tasks[seed]

    def _bar(self, name: str, steps: int, runs: int) -> Iterator[OnStep]:
        """Adds a progress bar; yields the callback that advances it, for each run."""
        bar = self._bars.add_task(name, total=steps * runs, loss="")
        for number in range(runs):

            def move(step: int, loss: float, done: int = steps * number) -> None:
                self._bars.update(bar, completed=done + step, loss=f"loss {loss:.4g}")

            yield move
        self._bars.update(bar, completed=steps * runs)


def warm_up(task: Task) -> None:
    """Makes the first, slow passes, so that they are not counted for a contender."""
    model = task.model()
    closure = Closure(task, model)
    closure.batch = task.batch(0)
    for _ in range(3):
        closure()
    task.validate(model)
