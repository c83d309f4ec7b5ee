"""Nothing that a user sets is ignored."""

from __future__ import annotations

import inspect
import math

from projcore.errors import ProjcoreError
from projcore.testing.law import Violation, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer
from projcore.testing.subject import Subject


@law()
def settings(subject: Subject) -> None:
    """A key that is no setting is refused, and NaN too wherever a number is expected.

    In a parameter group, and NaN in the constructor; with a `ProjcoreError`.
    """
    problem = make_problem()
    try:
        groups = [{"params": problem.params, "no_such_setting": 1}]
        make_optimizer(problem, subject.chain(), groups=groups)
    except ProjcoreError:
        pass
    else:
        raise Violation(
            "A parameter group with the key 'no_such_setting' was accepted.",
            "Put into defaults only what is a setting.",
        )
    module = subject.pick(subject.chain())
    accepted = inspect.signature(subject.cls.__init__).parameters
    for name, value in module.defaults.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        mend = f"Validate it in check: require(self, {name!r}, settings[{name!r}], minimum=...)."
        try:
            module.check({**module.defaults, name: math.nan})
        except ProjcoreError:
            pass
        else:
            raise Violation(f"check accepted {name}=nan.", mend)
        if name not in accepted:
            continue
        try:
            subject.chain(**{name: math.nan})
        except ProjcoreError:
            pass
        else:
            raise Violation(f"The constructor accepted {name}=nan.", mend)
