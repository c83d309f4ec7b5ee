"""Steps under `torch.autocast` are the same steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer
from projcore.testing.subject import Subject

STEPS = 2


@law()
def autocast(subject: Subject) -> None:
    """``torch.autocast`` does not affect a step, bitwise; the closure runs under it."""
    points, seen = [], []
    for enabled in (False, True):
        problem = make_problem(dtype=torch.float32)

        def closure(backward: bool = True, problem: Any = problem) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            loss: Tensor = problem.closure(backward)
            return loss

        optimizer = make_optimizer(problem, subject.chain())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(STEPS):
                optimizer.step(closure)
        points.append(problem.point())
        ensure(
            all(each is enabled for each in seen),
            "Its closure does not run under the autocast that step() was called under.",
            "Evaluate through objective.evaluate.",
        )
        seen.clear()
    what, fix = "Under autocast a step is not what it is without", "Leave autocast as it is."
    ensure_equal(points[1], points[0], what, fix)
