"""Runs: one contender trained on one task, with all measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from time import perf_counter, thread_time

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from projcore_lab.lineup import Contender, learning_rate
from projcore_lab.memory import PeakMemory, state_bytes
from projcore_lab.tasks import Batch, Task

MEMORY_STEPS = 2  # steps on which memory is measured, after the others
WARM_UP = 0.05  # of the steps, in the schedule "linear"

OnStep = Callable[[int, float], object]


@dataclass(frozen=True)
class Check:
    """A validation.

    Attributes:
        step: Steps made before it.
        seconds: Time that these took, without validations.
        evaluations: Passes through the model that these took, with or without a backward pass.
        loss: Validation loss.
        accuracy: Fraction of correct answers, for tasks that have them.
    """

    step: int
    seconds: float
    evaluations: int
    loss: float
    accuracy: float | None


@dataclass
class Run:
    """The result of training one contender once.

    Attributes:
        seed: Of the task.
        lr: The learning rate, if it has one.
        status: ``"finished"``, ``"diverged"`` (a loss was not finite) or ``"failed"``.
        reason: Of a status that is not ``"finished"``.
        losses: Training loss before each step.
        step_seconds: Time of each step.
        own_seconds: The optimizer's part of it, without forward and backward passes.
        evaluations: Evaluations of the loss, all in all.
        backwards: Those that had a backward pass too.
        checks: Validations; the first before any step.
        path: Points that the parameters went through, if the task draws them.
        state_bytes: What the optimizer keeps between steps.
        extra_bytes: The peak bytes that a step allocated in addition to parameters, gradients and
            state, outside forward and backward passes.
    """

    seed: int
    lr: float | None = None
    status: str = "finished"
    reason: str = ""
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    own_seconds: list[float] = field(default_factory=list)
    evaluations: int = 0
    backwards: int = 0
    checks: list[Check] = field(default_factory=list)
    path: list[tuple[float, float]] = field(default_factory=list)
    state_bytes: int | None = None
    extra_bytes: int | None = None

    @property
    def final(self) -> Check | None:
        """The last validation, if the run reached its end."""
        return self.checks[-1] if self.status == "finished" else None

    @property
    def best(self) -> Check | None:
        """The validation with the lowest loss, if there was any after a step."""
        return min(self.checks[1:], key=lambda check: check.loss, default=None)

    @property
    def seconds(self) -> float:
        """Time of all steps, without validations."""
        return sum(self.step_seconds)

    @property
    def median_step(self) -> float | None:
        """Median time of a step in seconds."""
        return statistics.median(self.step_seconds) if self.step_seconds else None

    @property
    def median_own(self) -> float | None:
        """Median time in seconds of the optimizer's part of a step."""
        return statistics.median(self.own_seconds) if self.own_seconds else None


class Closure:
    """Evaluates the loss of a model on one batch; counts and times the evaluations.

    Attributes:
        batch: The data of this step.
        keep_grads: Whether to write new gradients into the old tensors instead of dropping these.
        evaluations: How often it was called.
        backwards: How often with a backward pass.
        seconds: How long that took.
    """

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.batch: Batch = ()
        self.keep_grads = False
        self.evaluations = 0
        self.backwards = 0
        self.seconds = 0.0
        self._task = task
        self._model = model

    def __call__(self, backward: bool = True) -> Tensor:
        start = now()
        with torch.set_grad_enabled(backward):
            loss = self._task.loss(self._model, self.batch)
        if backward:
            self._model.zero_grad(set_to_none=not self.keep_grads)
            loss.backward()
        self.evaluations += 1
        self.backwards += backward
        self.seconds += now() - start
        return loss.detach()


def now() -> float:
    """Returns seconds: processor time of this thread if torch uses no other, else the clock's.

    So other processes on the machine do not count if one thread trains.
    """
    return thread_time() if torch.get_num_threads() == 1 else perf_counter()


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` must be given a closure."""
    return "closure" in getattr(optimizer, "needs", ())


def make_step(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> float:
    """Makes a step as a training loop would; returns the loss before it."""
    if needs_closure(optimizer):
        loss: Tensor = optimizer.step(closure)  # type: ignore[assignment, arg-type]
    else:
        loss = closure()
        optimizer.step()
    return float(loss)


def linear(share: float) -> float:
    """Returns the factor of the rate after a fraction of the steps: warmup, then decay to 0."""
    return min(share / WARM_UP, (1 - share) / (1 - WARM_UP))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": lambda share: 1.0, "linear": linear}


def train(
    task: Task,
    contender: Contender,
    steps: int,
    schedule: str = "constant",
    checks: int | None = None,
    on_step: OnStep | None = None,
) -> Run:
    """Trains a contender; an error of the optimizer ends the run and is kept in it.

    Args:
        task: What to train, and on what.
        contender: The optimizer.
        steps: How many steps.
        schedule: Of the learning rate, where there is one: a name in `SCHEDULES`.
        checks: How many validations there are beside early ones; by default the task's. With 0
            there is one before the first step and one after the last.
        on_step: Called after each step with their number and the training loss.
    """
    model = task.model()
    torch.manual_seed(task.seed)  # for contenders that draw random numbers
    optimizer = contender.optimizer(model)
    run = Run(task.seed, learning_rate(optimizer))
    closure = Closure(task, model)
    try:
        checked = _checked(steps, task.checks if checks is None else checks)
        _train(task, model, optimizer, closure, steps, schedule, checked, run, on_step)
        run.state_bytes = state_bytes(optimizer)
        if run.status == "finished":
            run.extra_bytes = _extra_bytes(task, optimizer, closure, steps)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # one contender's error must not cost the others' results
        run.status, run.reason = "failed", f"{type(error).__name__}: {error}"
    return run


def _train(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    closure: Closure,
    steps: int,
    schedule: str,
    checked: Set[int],
    run: Run,
    on_step: OnStep | None,
) -> None:
    scheduler = None
    if "lr" in optimizer.param_groups[0]:
        scheduler = LambdaLR(optimizer, lambda step: SCHEDULES[schedule]((step + 0.5) / steps))
    seconds = 0.0
    for step in range(steps + 1):
        position = task.position(model)
        if position and all(map(math.isfinite, position)):
            run.path.append(position)
        if step in checked:
            loss, accuracy = task.validate(model)
            if not math.isfinite(loss):
                run.status, run.reason = "diverged", f"{task.loss_name} {loss} after step {step}"
                return
            run.checks.append(Check(step, seconds, closure.evaluations, loss, accuracy))
        if step == steps:
            return
        closure.batch = task.batch(step)
        start, passes = now(), closure.seconds
        loss = make_step(optimizer, closure)
        run.step_seconds.append(now() - start)
        run.own_seconds.append(run.step_seconds[-1] - (closure.seconds - passes))
        seconds += run.step_seconds[-1]
        run.evaluations, run.backwards = closure.evaluations, closure.backwards
        if not math.isfinite(loss):
            run.status, run.reason = "diverged", f"training loss {loss} in step {step + 1}"
            return
        run.losses.append(loss)
        if scheduler and step + 1 < steps:
            scheduler.step()
        if on_step:
            on_step(step + 1, loss)


def _checked(steps: int, checks: int) -> set[int]:
    """Returns the steps before which there is a validation, and the number of steps itself."""
    if not checks:
        return {0, steps}
    every = max(1, steps // checks)
    early = {2**power for power in range(every.bit_length())}  # where the loss falls fast
    return {*range(0, steps, every), *(step for step in early if step < every), steps}


def _extra_bytes(task: Task, optimizer: torch.optim.Optimizer, closure: Closure, steps: int) -> int:
    """Measures the optimizer's temporary memory in extra steps, which change the model."""
    peak = 0
    closure.keep_grads = True
    for step in range(steps, steps + MEMORY_STEPS):
        closure.batch = task.batch(step)
        closure()  # so that there are gradients
        with PeakMemory() as memory:

            def paused(backward: bool = True, memory: PeakMemory = memory) -> Tensor:
                with memory.paused():
                    return closure(backward)

            make_step(optimizer, paused)
        peak = max(peak, memory.peak)
    return peak
