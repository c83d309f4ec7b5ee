"""A comparison: several contenders trained on one task, each with several seeds."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import entry_points, version
from typing import Any

from projcore_lab.runs import Check, Run
from projcore_lab.target import Target
from projcore_lab.tasks import Task
from projcore_lab.tune import Trial


@dataclass
class Result:
    """The result of a contender: a run for each seed, and their statistics.

    Attributes:
        name: Of the contender.
        spec: The expression that made it.
        runs: One for each seed.
        trials: The learning rates tried in tuning.
    """

    name: str
    spec: str
    runs: list[Run]
    trials: list[Trial] = field(default_factory=list)

    @property
    def lr(self) -> float | None:
        """The learning rate, if it has one."""
        return self.runs[0].lr

    @property
    def failure(self) -> Run | None:
        """The first run that did not complete all its steps."""
        return next((run for run in self.runs if not run.final), None)

    @property
    def status(self) -> str:
        """The status of the first run that did not finish, or ``"finished"``."""
        return self.failure.status if self.failure else "finished"

    @property
    def reason(self) -> str:
        """The reason for a status other than ``"finished"``."""
        return self.failure.reason if self.failure else ""

    @cached_property
    def checks(self) -> list[Check]:
        """The means of the runs' validations, up to the last that all runs reached."""
        shortest = min(len(run.checks) for run in self.runs)
        return [_mean([run.checks[i] for run in self.runs]) for i in range(shortest)]

    @property
    def final(self) -> Check | None:
        """The mean of the last validations, if all runs reached their end."""
        return None if self.failure else self.checks[-1]

    @property
    def best(self) -> Check | None:
        """The lowest mean validation, if there was any after a step."""
        return min(self.checks[1:], key=lambda check: check.loss, default=None)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the final loss over seeds, if there are several."""
        losses = [run.final.loss for run in self.runs if run.final]
        return statistics.stdev(losses) if self.final and len(losses) > 1 else None

    @property
    def seconds(self) -> float:
        """Mean time of all steps of a run, without validations."""
        return statistics.fmean(run.seconds for run in self.runs)

    @property
    def evaluations(self) -> int:
        """Mean number of evaluations of the loss in a run."""
        return round(statistics.fmean(run.evaluations for run in self.runs))

    @property
    def median_step(self) -> float | None:
        """Median time of a step in seconds."""
        return _median([second for run in self.runs for second in run.step_seconds])

    @property
    def median_own(self) -> float | None:
        """Median time in seconds of the optimizer's part of a step."""
        return _median([second for run in self.runs for second in run.own_seconds])

    @property
    def state_bytes(self) -> int | None:
        """The bytes that the optimizer keeps between steps."""
        return self.runs[0].state_bytes

    @property
    def extra_bytes(self) -> int | None:
        """The peak bytes that a step allocated in addition to state, parameters and gradients."""
        return self.runs[0].extra_bytes

    def loss_after(self, seconds: float) -> float | None:
        """Returns the last validation loss that was reached within a time."""
        return next((c.loss for c in reversed(self.checks) if c.seconds <= seconds), None)

    def losses_at(self, step: int) -> list[float]:
        """Returns each seed's validation loss after a step at which there was a validation."""
        return [check.loss for run in self.runs for check in run.checks if check.step == step]


@dataclass
class Comparison:
    """The results of a comparison.

    Attributes:
        task: What was trained.
        settings: The user's options.
        results: Of the contenders, in their order.
        target: The loss to reach, if one was given.
        missing: Names of the contenders that are not finished, because the user interrupted the
            run.
    """

    task: Task
    settings: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    target: Target | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def finished(self) -> list[Result]:
        """The results whose runs all completed."""
        return [result for result in self.results if result.final]

    @property
    def equal_seconds(self) -> float | None:
        """The time of the fastest finished result, at which all are compared."""
        return min((result.seconds for result in self.finished), default=None)

    def as_json(self) -> dict[str, Any]:
        """Returns all results as plain values, without infinities and NaN."""
        model = self.task.model()
        return {
            "task": {
                "name": self.task.name,
                "description": self.task.description,
                "options": self.task.options,
                "loss": self.task.loss_name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "parameter_bytes": sum(p.nbytes for p in model.parameters()),
            },
            "settings": self.settings,
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "equal_seconds": self.equal_seconds,
            "target": self.target and asdict(self.target),
            "results": [self._result_as_json(result) for result in self.results],
            "missing": self.missing,
        }

    def _result_as_json(self, result: Result) -> dict[str, Any]:
        equal = self.equal_seconds
        return {
            "name": result.name,
            "spec": result.spec,
            "lr": result.lr,
            "trials": [trial._asdict() for trial in result.trials],
            "status": result.status,
            "reason": result.reason,
            "final": result.final and asdict(result.final),
            "final_losses": [run.final and run.final.loss for run in result.runs],
            "spread": result.spread,
            "best": result.best and asdict(result.best),
            "steps_to_target": self.target and self.target.steps(result),
            "loss_at_equal_seconds": None if equal is None else result.loss_after(equal),
            "seconds": result.seconds,
            "median_step_seconds": result.median_step,
            "median_own_seconds": result.median_own,
            "evaluations": result.evaluations,
            "state_bytes": result.state_bytes,
            "extra_bytes": result.extra_bytes,
            "checks": [asdict(check) for check in result.checks],
        }


def coincident(results: Sequence[Result], tolerance: float = 0.02) -> list[list[Result]]:
    """Groups results whose validation losses agree throughout, to a relative tolerance."""
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            if difference(group[0], result) <= tolerance:
                group.append(result)
                break
        else:
            groups.append([result])
    return groups


def difference(one: Result, other: Result) -> float:
    """Returns the greatest relative difference of two results' validation losses."""
    if len(one.checks) != len(other.checks) or one.status != other.status:
        return float("inf")
    pairs = [(a.loss, b.loss) for a, b in zip(one.checks, other.checks, strict=True)]
    return max((abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs), default=0.0)


def versions() -> dict[str, str]:
    """Returns the versions of all packages that may change a result."""
    plugins = {
        point.dist.name: point.dist.version
        for point in entry_points(group="projcore")
        if point.dist is not None
    }
    return {
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "projcore": version("projcore"),
        **dict(sorted(plugins.items())),
    }


def _mean(checks: Sequence[Check]) -> Check:
    accuracies = [check.accuracy for check in checks if check.accuracy is not None]
    return Check(
        checks[0].step,
        statistics.fmean(check.seconds for check in checks),
        round(statistics.fmean(check.evaluations for check in checks)),
        statistics.fmean(check.loss for check in checks),
        statistics.fmean(accuracies) if accuracies else None,
    )


def _median(seconds: Sequence[float]) -> float | None:
    return statistics.median(seconds) if seconds else None
