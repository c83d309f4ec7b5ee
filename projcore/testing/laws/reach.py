"""Groups and schedules act on everything, wherever it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from projcore import Module
from projcore.errors import ArgumentError, ProjcoreError
from projcore.testing.law import Violation, ensure_close, ensure_equal, law
from projcore.testing.parts import Factor, Mix, Momentum, Scale
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import comes_last, make_optimizer, take_steps
from projcore.testing.subject import Subject

TOLERANCE = 1e-12  # between two float64 runs of a few steps that round differently
STEPS = 3
FIX = "Read settings[i][name] in each step, and never an attribute of the module."


@law()
def reach(subject: Subject) -> str | None:
    """A setting in a parameter group acts as in the constructor, and schedulers work.

    For each setting that is a constructor's argument: overriding it in the group, alone and inside
    projections, gives bitwise the run of a module built with that value. For a projection, the same
    holds for the learning rate of a module inside, and a `LambdaLR` gives bitwise the run of a
    module with the same factors; tensors in groups that differ are updated as each would be alone,
    or raise a clear error if they become one tensor (unless ``stochastic``).

    If no module has a setting ``lr``, that of the group multiplies the full step.
    """
    untried = _check_settings(subject)
    _check_factor(subject)
    if subject.kind == "projection":
        _check_inside(subject)
        _check_schedule(subject)
        if "stochastic" not in subject.tags:
            _check_groups(subject)
    return f"no other value was tried of {', '.join(untried)}" if untried else None


def _check_settings(subject: Subject) -> list[str]:
    untried = []
    module = subject.pick(subject.chain())
    accepted = inspect.signature(subject.cls.__init__).parameters
    for name, value in module.defaults.items():
        other = _other_value(module, name, value)
        if other is None or name not in accepted:
            untried.append(name)
            continue
        for wrap in (lambda modules: modules, lambda modules: [Mix(modules)]):
            try:
                expected = make_problem()
                optimizer = make_optimizer(expected, wrap(subject.chain(**{name: other})))
            except ArgumentError:
                break  # it cannot be there
            take_steps(expected, optimizer, STEPS)
            actual = make_problem()
            key = _key(make_optimizer(actual, wrap(subject.chain())).param_groups[0], name)
            groups = [{"params": actual.params, key: other}]
            optimizer = make_optimizer(actual, wrap(subject.chain()), groups=groups)
            take_steps(actual, optimizer, STEPS)
            ensure_equal(
                actual.point(),
                expected.point(),
                f"{name}={other!r} in a parameter group is not {name}={other!r} in the constructor",
                FIX,
            )
    return untried


def _key(group: dict[str, Any], name: str) -> str:
    """The group's key of a setting: its name, qualified by the first position that has it."""
    return min((key for key in group if key.endswith(f".{name}")), default=name)


def _other_value(module: Module, name: str, value: Any) -> Any:
    """Returns another value of a setting that the module accepts, or None."""
    candidates: list[Any] = []
    if isinstance(value, bool):
        candidates = [not value]
    elif isinstance(value, int):
        candidates = [value + 1, value - 1]
    elif isinstance(value, float) and math.isfinite(value):
        candidates = [value / 2, value / 2 + 0.01, value * 2]
    elif isinstance(value, tuple) and all(isinstance(item, float) for item in value):
        candidates = [tuple(item / 2 for item in value)]
    for candidate in candidates:
        try:
            module.check({**module.defaults, name: candidate})
        except ProjcoreError:
            continue
        if candidate != value:
            return candidate
    return None


def _check_inside(subject: Subject) -> None:
    expected, actual = make_problem(), make_problem()
    built = make_optimizer(expected, [subject.around(Momentum(), Scale(0.02))])
    groups = [{"params": actual.params, "lr": 0.02}]
    grouped = make_optimizer(actual, [subject.around(Momentum(), Scale(0.05))], groups=groups)
    ensure_equal(
        take_steps(actual, grouped, STEPS),
        take_steps(expected, built, STEPS),
        "lr in a parameter group does not act inside",
        "Leave settings to the kernel: hand its values on.",
    )


def _check_schedule(subject: Subject) -> None:
    factors = [1.0, 0.5, 0.25, 2.0]
    told, scheduled = make_problem(), make_problem()
    factor = Factor()
    fixed = make_optimizer(told, [subject.around(Momentum(), factor)])
    optimizer = make_optimizer(scheduled, [subject.around(Momentum(), Scale(0.05))])
    scheduler = LambdaLR(optimizer, lambda step: factors[step])
    for step in range(STEPS):
        optimizer.step(scheduled.closure)
        scheduler.step()
        factor.factor = 0.05 * factors[step]
        fixed.step(told.closure)
    ensure_close(
        scheduled.point(),
        told.point(),
        TOLERANCE,
        "A learning-rate schedule does not act inside",
        "Leave settings to the kernel: hand its values on.",
    )


def _check_factor(subject: Subject) -> None:
    """Schedules ``lr`` where nothing has one, against a module that multiplies where it belongs."""
    factor = Factor()
    if subject.kind == "projection":
        bare: list[Module] = [subject.around(Momentum())]
        told = [subject.around(Momentum(), factor)] if comes_last(*bare) else [*bare, factor]
    else:
        bare = [subject.build()]
        told = [factor, *bare] if bare[0].comes_last else [*bare, factor]
    scheduled, expected = make_problem(), make_problem()
    optimizer = make_optimizer(scheduled, bare)
    if not optimizer.rate_is_factor:
        return
    fixed = make_optimizer(expected, told)
    for rate in (1.0, 0.5, 0.0625):
        optimizer.param_groups[0]["lr"] = factor.factor = rate
        optimizer.step(scheduled.closure)
        fixed.step(expected.closure)
    ensure_close(
        scheduled.point(),
        expected.point(),
        TOLERANCE,
        "lr in a parameter group does not multiply the step, where no module has such a setting",
        "Leave settings to the kernel: hand its values on.",
    )


def _check_groups(subject: Subject) -> None:
    def groups(problem: Problem) -> list[dict[str, Any]]:
        return [
            {"params": problem.params[:2], "lr": 0.02},
            {"params": problem.params[2:], "lr": 0.1},
        ]

    together = make_problem()
    chain: Callable[[], list[Module]] = lambda: [subject.around(Momentum(), Scale())]  # noqa: E731
    try:
        optimizer = make_optimizer(together, chain(), groups=groups(together))
        take_steps(together, optimizer, STEPS)
    except ProjcoreError as error:
        if subject.cls.scope == "all":
            return
        raise Violation(f"It refused groups with different lr: {error}", FIX) from error
    apart = make_problem()
    if subject.cls.scope == "all":
        if "layout" not in subject.tags:
            raise Violation(
                "Groups with different lr were merged into one tensor without an error.",
                "Return in origins every tensor that a projected one is made from.",
            )
        # The plan runs elementwise modules outside, where groups may differ.
        take_steps(apart, make_optimizer(apart, [Momentum(), Scale()], groups=groups(apart)), STEPS)
    else:
        single = [make_optimizer(apart, chain(), groups=[group]) for group in groups(apart)]
        for _ in range(STEPS):
            apart.closure()
            for optimizer in single:
                optimizer.step()
    ensure_close(
        together.point(),
        apart.point(),
        TOLERANCE,
        "Tensors in groups with different lr do not move as each would alone",
        FIX,
    )
