"""No setting of a user is ignored."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

from torch import Tensor

from projcore._arguments import check_settings
from projcore.errors import ProjcoreError, ProjcoreWarning
from projcore.testing.law import Violation, ensure, ensure_equal, law, same_bits
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject

# Of these at least one is no value of most settings.
CANDIDATES: tuple[Any, ...] = (math.nan, None, "text", -1, 0, -0.5, 2.5, (), (math.nan, 0.9), {})


@law()
def settings(subject: Subject) -> None:
    """Bad values raise an error wherever they are given, and unknown keys are not silent.

    NaN raises a `ProjcoreError` wherever a number is expected, in parameter groups and in the
    constructor. A bad value that is written into a group later raises the error in the next step,
    and nothing has changed then.
    """
    problem = make_problem()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ProjcoreWarning)
        groups = [{"params": problem.params, "no_such_setting": 1}]
        make_optimizer(problem, subject.chain(), groups=groups)
    ensure(
        any("'no_such_setting'" in str(warning.message) for warning in caught),
        "A parameter group with the key 'no_such_setting' was accepted without a warning.",
        "Put into defaults only what is a setting.",
    )
    _check_nan(subject)
    _check_written(subject)


def _check_nan(subject: Subject) -> None:
    module = subject.pick(subject.chain())
    accepted = inspect.signature(subject.cls.__init__).parameters
    for name, value in module.defaults.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        fix = f"Validate it in check: require(self, {name!r}, settings[{name!r}], minimum=...)."
        try:
            module.check({**module.defaults, name: math.nan})
        except ProjcoreError:
            pass
        else:
            raise Violation(f"check accepted {name}=nan.", fix)
        if name not in accepted:
            continue
        try:
            subject.chain(**{name: math.nan})
        except ProjcoreError:
            pass
        else:
            raise Violation(f"The constructor accepted {name}=nan.", fix)


def _check_written(subject: Subject) -> None:
    """Writes values into groups that the constructor would refuse."""
    module = subject.pick(subject.chain())
    for name in module.defaults:
        fix = f"Raise a ProjcoreError in check that tells the values that {name!r} may have."
        bad = []
        for value in CANDIDATES:
            try:
                check_settings(module, {**module.defaults, name: value})
            except ProjcoreError:
                bad.append(value)
        if not bad:
            continue
        problem = make_problem()
        optimizer = make_optimizer(problem, subject.chain())
        take_steps(problem, optimizer, 2)
        group = optimizer.param_groups[0]
        key = name if not optimizer._names.shared.get(name) else optimizer._names.keys["0"][name]
        good, point, memory = group[key], problem.point(), _copied(remembered(optimizer))
        for value in bad:
            group[key] = value
            try:
                optimizer.step(problem.closure)
            except ProjcoreError:
                pass
            else:
                raise Violation(f"A step took {name}={value!r}, which check refuses.", fix)
            what = f"After a step refused {name}={value!r}"
            ensure_equal(problem.point(), point, f"{what}, parameters differ", fix)
            same = all(
                old.keys() == new.keys() and all(_same(old[k], new[k]) for k in old)
                for old, new in zip(memory, remembered(optimizer), strict=True)
            )
            ensure(same, f"{what}, memory differs.", fix)
        group[key] = good
        take_steps(problem, optimizer, 1)


def _same(one: Any, other: Any) -> bool:
    return same_bits(one, other) if isinstance(one, Tensor) else bool(one == other)


def _copied(memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in each.items()}
        for each in memory
    ]
