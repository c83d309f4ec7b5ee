"""Checks: one law for one component each, made by one generator for all that runs them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from projcore._outcome import INTERRUPTS
from projcore.errors import ArgumentError, ProjcoreError
from projcore.testing import conditions
from projcore.testing.law import Law, NotApplicable, Violation
from projcore.testing.packaging import CHECKS, Package, as_packages
from projcore.testing.subject import Subject, as_subjects

if TYPE_CHECKING:
    import pytest

Status = Literal["passed", "failed", "skipped", "expected"]


@dataclass(frozen=True)
class Check:
    """A law to be checked on a component, or a check of a plugin as a package.

    Attributes:
        law: The law.
        subject: The component, or the plugin.
        skip: Why it does not apply, or None.
        expected: Why it is expected to fail, or None.
        blocked: Of the components that break a law that all others presuppose, that law; shared by
            the checks that are made together.
    """

    law: Law
    subject: Subject | Package
    skip: str | None = None
    expected: str | None = None
    blocked: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.law.name}"

    def __call__(self) -> str | None:
        """Runs it; returns a remark, or None.

        Raises:
            Violation: If the component does not keep the law.
            NotApplicable: If it turns out that the law does not apply.
        """
        conditions.forget()
        if self.subject.name in self.blocked:
            raise NotApplicable(f"{self.blocked[self.subject.name]!r} comes first")
        try:
            return self.law.body(self.subject)
        except Violation as violation:
            if self.law.first:
                self.blocked[self.subject.name] = self.law.name
            raise Violation(
                f"{self.subject.name} breaks the law {self.law.name!r}: {violation.what}",
                f"{violation.fix} {conditions.told()}".rstrip(),
                violation.reason,
            ) from None


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        component: The component.
        law: The law's name.
        status: ``"passed"``, ``"failed"``, ``"skipped"``, or ``"expected"`` for a failure that
            was announced. An announced failure that does not come is one that failed.
        message: Why it failed or was skipped, or a remark.
        reason: Of a failure, the part of the message that may be the same for several laws.
        seconds: How long it took.
        traceback: Where it failed.
    """

    component: str
    law: str
    status: Status
    message: str = ""
    reason: str = ""
    seconds: float = 0.0
    traceback: str = ""


def checks(
    *things: object, slow: bool = False, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """Returns all checks of components, those that do not apply included.

    Of a plugin, those of its package come first; see `projcore.testing.packaging`.

    Args:
        things: Names of plugins or components, classes, modules, or subjects.
        slow: Include the laws that take seconds.
        expected_failures: Reasons by law (``"atomic"``), or by component and law
            (``"adam-atomic"``).

    Raises:
        ArgumentError: If no check applies, or an expected failure names no check.
    """
    from projcore.testing.laws import LAWS

    subjects: list[Subject | Package] = []
    for thing in things:
        subjects += [*as_packages(thing), *as_subjects(thing)]
    reasons = dict(expected_failures or {})
    unused = set(reasons)
    blocked: dict[str, str] = {}
    result = []
    for subject in subjects:
        for law in CHECKS if isinstance(subject, Package) else LAWS:
            if law.slow and not slow:
                continue
            skip = None if isinstance(subject, Package) else law.not_applicable(subject)
            check = Check(law, subject, skip, blocked=blocked)
            names = [name for name in (str(check), law.name) if name in reasons]
            unused -= set(names)
            if names:
                check = replace(check, expected=reasons[names[0]])
            result.append(check)
    of_components = [check for check in result if isinstance(check.subject, Subject)]
    if not result or (of_components and all(check.skip for check in of_components)):
        raise ArgumentError(
            f"There is nothing to check: {', '.join(map(str, things)) or 'nothing'} was given. A "
            "check that never runs proves nothing. Pass a plugin that registers components."
        )
    if unused:
        raise ArgumentError(
            f"expected_failures names {sorted(unused)}, which is no check. It holds names of laws, "
            f"or of checks such as {str(result[0])!r}. Correct or remove it."
        )
    return result


def check_component(
    thing: object,
    slow: bool = False,
    expected_failures: Mapping[str, str] | None = None,
    report: Callable[[CheckResult], object] | None = None,
) -> list[CheckResult]:
    """Checks all laws on a component, a plugin, a class or a module; see `checks`.

    Args:
        thing: As for `checks`.
        slow: As for `checks`.
        expected_failures: As for `checks`.
        report: Called with each result as soon as it is there.

    Returns:
        A result for each check; `summary` counts them.

    Raises:
        ArgumentError: If there is nothing to check.

    Example:
        >>> from projcore.testing.parts import Momentum
        >>> results = check_component(Momentum)
        >>> [result for result in results if result.status == "failed"]
        []
    """
    made = checks(thing, slow=slow, expected_failures=expected_failures)
    results, of_components = [], []
    for check in made:
        result = _run(check)
        results.append(result)
        if isinstance(check.subject, Subject):
            of_components.append(result)
        if report is not None:
            report(result)
    if of_components and all(result.status == "skipped" for result in of_components):
        reasons = sorted({result.message for result in of_components})
        raise ArgumentError(
            f"There is nothing to check: of {thing}, all was skipped ({'; '.join(reasons)}). A "
            "check that never runs proves nothing. Correct its tags or its example."
        )
    return results


def _run(check: Check) -> CheckResult:
    status: Status = "passed"
    message, reason, trace = "", "", ""
    start = time.perf_counter()
    if check.skip is not None:
        status, message = "skipped", check.skip
    else:
        try:
            message = check() or ""
        except NotApplicable as why:
            status, message = "skipped", str(why)
        except INTERRUPTS:
            raise
        except BaseException as error:
            reason = error.reason if isinstance(error, Violation) else _said(error)
            status, message = "failed", _message(check, error)
            trace = "".join(traceback.format_exception(error))
    if check.expected is not None and status == "failed":
        status, message = "expected", f"{check.expected} ({message})"
    elif check.expected is not None and status == "passed":
        status = "failed"
        message = (
            f"{check} was expected to fail ({check.expected}), but it passes. "
            "Remove it from expected_failures."
        )
    seconds = time.perf_counter() - start
    name = check.subject.name
    return CheckResult(name, check.law.name, status, message, reason, seconds, trace)


def _message(check: Check, error: BaseException) -> str:
    if isinstance(error, Violation):
        return str(error)
    text = f"{check.subject.name} breaks the law {check.law.name!r}: {_said(error)}"
    return f"{text} {conditions.told()}".rstrip()


def _said(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".rstrip(" .:")
    if isinstance(error, ProjcoreError):
        return f"{text}."
    return f"{text}. It must work, or raise a ProjcoreError. The traceback says where."


def summary(results: Iterable[CheckResult]) -> str:
    """Returns how many checks passed, failed, were skipped, or failed as expected."""
    counts = {"passed": 0, "failed": 0, "skipped": 0, "expected": 0}
    for result in results:
        counts[result.status] += 1
    return (
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['expected']} failed as "
        f"expected, {counts['skipped']} skipped"
    )


def parametrize_with_checks(
    *things: object, slow: bool = False, expected_failures: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], pytest.MarkDecorator]:
    """Makes a test of each check: decorates a test with the argument ``check``, which calls it.

    Args:
        things: As for `checks`.
        slow: As for `checks`.
        expected_failures: As for `checks`; one that passes fails the test.

    Example:
        >>> @parametrize_with_checks("adaptive")
        ... def test_laws(check):
        ...     check()
    """
    import pytest

    def marks(check: Check) -> Sequence[pytest.MarkDecorator]:
        if check.skip is not None:
            return [pytest.mark.skip(reason=f"{check.law.name}: {check.skip}")]
        if check.expected is not None:
            return [pytest.mark.xfail(reason=check.expected, strict=True)]
        return []

    def run(check: Check) -> str | None:
        try:
            return check()
        except NotApplicable as reason:
            pytest.skip(f"{check.law.name}: {reason}")

    def decorate(test: Callable[..., Any]) -> Any:
        made = checks(*things, slow=slow, expected_failures=expected_failures)
        parameters = [
            pytest.param(partial(run, check), id=str(check), marks=marks(check)) for check in made
        ]
        return pytest.mark.parametrize("check", parameters)(test)

    return decorate
