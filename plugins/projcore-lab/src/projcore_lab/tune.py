"""Finding a learning rate: short runs over a small grid around a contender's own."""

from __future__ import annotations

import dataclasses

from projcore_lab.lineup import Contender
from projcore_lab.runs import OnStep, Run, Trial, train
from projcore_lab.tasks import Task

GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
SHARE = 5  # each short run takes this part of the steps


def tune(
    task: Task, contender: Contender, own: float, steps: int, on_step: OnStep | None = None
) -> tuple[Contender, list[Trial]]:
    """Returns the contender with the learning rate that did best, and all that were tried.

    One that diverged with each of them comes back as it is.

    Args:
        task: What to train.
        contender: The optimizer.
        own: Its own learning rate, around which others are tried.
        steps: Of the full run; each short one takes a fifth.
        on_step: Called after each step with how many were made in all the short runs.
    """
    short = trial_steps(steps)
    trials: list[Trial] = []
    for factor in GRID:
        lr = float(f"{own * factor:.6g}")  # 0.3 * 0.003 reads 0.0009
        candidate = dataclasses.replace(contender, lr=lr)
        run = train(task, candidate, short, _shifted(on_step, short * len(trials)))
        trials.append(Trial(lr, run.final.loss if run.final else None))
    losses = {trial.loss: trial.lr for trial in reversed(trials) if trial.loss is not None}
    if not losses:
        return contender, trials
    return dataclasses.replace(contender, lr=losses[min(losses)]), trials


def _shifted(on_step: OnStep | None, by: int) -> OnStep | None:
    return on_step and (lambda step, loss: on_step(by + step, loss))


def trial_steps(steps: int) -> int:
    """Returns the steps of a short run."""
    return max(1, steps // SHARE)


def at_edge(run: Run) -> bool:
    """Tells whether the learning rate found is the grid's lowest or highest."""
    return bool(run.trials) and run.lr in (run.trials[0].lr, run.trials[-1].lr)
