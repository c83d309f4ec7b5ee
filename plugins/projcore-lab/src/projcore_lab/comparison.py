"""A comparison: several contenders trained alike on one task."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points, version
from typing import Any

from projcore_lab.runs import Run
from projcore_lab.tasks import Task


@dataclass
class Comparison:
    """Everything that a comparison found.

    Attributes:
        task: What was trained.
        settings: What the user asked for, by option.
        runs: Of the contenders that came to an end, in their order.
        missing: Names of those that did not, because the user interrupted them.
    """

    task: Task
    settings: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def finished(self) -> list[Run]:
        """The runs that made all their steps."""
        return [run for run in self.runs if run.final]

    @property
    def equal_seconds(self) -> float | None:
        """The time that all runs which finished had at least, to compare them by time."""
        return min((run.seconds for run in self.finished), default=None)

    def as_json(self) -> dict[str, Any]:
        """Returns everything as plain values; there is no infinity and no NaN among them."""
        model = self.task.model()
        return {
            "task": {
                "name": self.task.name,
                "description": self.task.description,
                "loss": self.task.loss_name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "parameter_bytes": sum(p.nbytes for p in model.parameters()),
            },
            "settings": self.settings,
            "versions": versions(),
            "platform": f"{platform.system()} {platform.machine()}",
            "equal_seconds": self.equal_seconds,
            "runs": [self._run_as_json(run) for run in self.runs],
            "missing": self.missing,
        }

    def _run_as_json(self, run: Run) -> dict[str, Any]:
        equal = self.equal_seconds
        return {
            **asdict(run),
            "final": run.final and asdict(run.final),
            "best": run.best and asdict(run.best),
            "seconds": run.seconds,
            "median_step_seconds": run.median_step,
            "median_own_seconds": run.median_own,
            "loss_at_equal_seconds": None if equal is None else run.loss_after(equal),
        }


def coincident(runs: Sequence[Run], tolerance: float = 0.02) -> list[list[Run]]:
    """Groups runs whose validation losses agree all the way, to the tolerance (relative)."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if difference(group[0], run) <= tolerance:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def difference(one: Run, other: Run) -> float:
    """Returns the greatest relative difference of two runs' validation losses."""
    if len(one.checks) != len(other.checks) or one.status != other.status:
        return float("inf")
    pairs = [(a.loss, b.loss) for a, b in zip(one.checks, other.checks, strict=True)]
    return max((abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs), default=0.0)


def versions() -> dict[str, str]:
    """Returns the versions of all that may change a result."""
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
