"""A step that fails has not happened."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Module, Optimizer, ProjectionBase
from projcore.errors import ProjcoreError
from projcore.testing.law import ensure, ensure_equal, law, same_bits
from projcore.testing.parts import Bomb, Failing
from projcore.testing.problem import InjectedFault, Problem, make_problem
from projcore.testing.run import comes_last, make_optimizer, take_steps
from projcore.testing.subject import Subject

SHAPES = ((3, 2), (4,), ())
MOST = 24  # operations of a step that are made to fail when it must be quick; more lines, more
TORCH = os.path.dirname(torch.__file__) + os.sep
FIX = (
    "Compute first, write last: nothing but objective.evaluate may write a parameter, and it "
    "restores them."
)


class FaultAt(TorchDispatchMode):
    """Raises in place of one tensor operation, counted outside the closure; counts them all.

    Args:
        problem: Whose closure is not counted.
        at: Which operation, from 1; None for none.

    Attributes:
        places: If none is to fail, of each operation what it is, and the line that asks for it.
    """

    def __init__(self, problem: Problem, at: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.problem = problem
        self.at = at
        self.count = 0
        self.places: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.problem.closing and func.namespace != "profiler":
            self.count += 1
            if self.at is None:
                self.places.append((func, *_line_outside_torch()))
            if self.count == self.at:
                raise InjectedFault(f"in place of {func}")
        return func(*args, **(kwargs or {}))


def _line_outside_torch() -> tuple[str, int]:
    """Returns the file and the line that asked for the operation that is being dispatched."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(TORCH) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


@law()
def atomic(subject: Subject) -> str:
    """After an exception anywhere in a step every parameter is bitwise unchanged.

    And the next step works. Only after an exception while parameters are being written, by a module
    that writes them itself or in several operations, may all of them be written: then this step and
    the next are bitwise equal to those without the exception.

    The exception is raised in each call of the closure, in a module next to and inside it, in each
    call of `project` and `unproject` of a projection around it and of its own, and in place of
    tensor operations of the first and of a later step: at least one from each line of code.

    Returns how many of the steps taken after a fault were bitwise the step without it. That is not
    demanded: memory may have moved.
    """
    _check_modules(subject)
    return _check_operations(subject, MOST)


@law(slow=True)
def atomic_everywhere(subject: Subject) -> str:
    """As `atomic`, with an exception in place of every operation."""
    return _check_operations(subject, math.inf)


def _check_operations(subject: Subject, most: float) -> str:
    exact = total = 0
    for before in (0, 2):
        problem = make_problem(SHAPES, torch.float32)
        optimizer = make_optimizer(problem, subject.chain())
        take_steps(problem, optimizer, before)
        # What is made once for a process, such as a table, is no part of the step that is checked.
        first, warming = copy.deepcopy((problem, optimizer))
        warming.step(first.closure)
        clean, unharmed = copy.deepcopy((problem, optimizer))
        clean.calls = 0
        with FaultAt(clean) as counter:
            unharmed.step(clean.closure)
        expected, calls = clean.point(), clean.calls
        unharmed.step(clean.closure)
        following = clean.point()
        faults: list[Callable[[Problem], Any]] = [
            *(_fault_in_closure(call) for call in range(1, calls + 1)),
            *(_fault_in_operation(at) for at in _chosen(counter.places, most)),
        ]
        for fault in faults:
            total += 1
            exact += _check_fault(problem, optimizer, fault, expected, following)
    return f"{exact} of {total} steps after a fault were bitwise the step without it"


def _chosen(places: Sequence[object], most: float) -> list[int]:
    """Returns which operations are to fail, from 1: all if they are no more than `most`.

    Else the last at each place, before which a loop has done the most, and of the others an even
    choice, as many as make up `most`.
    """
    count = len(places)
    if count <= most:
        return list(range(1, count + 1))
    last = {place: at for at, place in enumerate(places, 1)}
    others = sorted(set(range(1, count + 1)) - set(last.values()))
    more = max(0, int(most) - len(last))
    return sorted([*last.values(), *(others[i * len(others) // more] for i in range(more))])


def _fault_in_closure(call: int) -> Callable[[Problem], Any]:
    def arm(problem: Problem) -> Any:
        problem.fail_at = problem.calls + call
        return FaultAt(problem)

    return arm


def _fault_in_operation(at: int) -> Callable[[Problem], Any]:
    return lambda problem: FaultAt(problem, at)


def _check_fault(
    problem: Problem,
    optimizer: Optimizer,
    fault: Callable[[Problem], Any],
    expected: list[Tensor],
    following: list[Tensor],
) -> bool:
    """Takes a step with a fault, on a copy, and one without.

    Tells whether the fault made no difference: that led to where the step without it does.
    """
    problem, optimizer = copy.deepcopy((problem, optimizer))
    point = problem.point()
    text = ""
    with fault(problem):
        try:
            optimizer.step(problem.closure)
        except InjectedFault as error:
            text = str(error)
    problem.fail_at = None
    ensure(bool(text), "It swallowed an exception raised in a step.", "Never catch Exception.")
    written = not _same(point, expected) and _same(problem.point(), expected)
    if not written:
        ensure_equal(problem.point(), point, f"After an exception {text} parameters differ", FIX)
    optimizer.step(problem.closure)
    after = problem.point()
    if written:
        what = f"All was written when there was an exception {text}, but the step after differs"
        ensure_equal(after, following, what, FIX)
    ensure(
        all(bool(torch.isfinite(tensor).all()) for tensor in after),
        f"The step after an exception {text} is not finite.",
        "Leave the state whole: change it after what may fail, or all of it at once.",
    )
    return written or _same(after, expected)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(same_bits, one, other))


def _check_modules(subject: Subject) -> None:
    """Raises in modules beside and inside, and in projections around it and in its own."""
    beside: list[list[Module]] = [[Bomb(2), *subject.chain()]]
    chain = subject.chain()
    if not comes_last(*chain):
        beside.append([*chain, Bomb(2)])
    if subject.kind == "projection":
        beside.append([subject.around(Bomb(2), *_plain())])
        beside.append([subject.around(*_plain(), Bomb(2))])
    for modules in beside:
        _check_modules_fail(modules)
    for at in range(1, 100) if _may_stand_inside(subject) else ():
        if not _check_modules_fail([Failing(subject.chain(), at=at)]):
            break
    if subject.kind == "projection":
        for method in ("project", "unproject"):
            for at in range(1, 100):
                chain = subject.chain()
                _fail_in(subject.pick(chain), method, at)
                if not _check_modules_fail(chain):
                    break


def _may_stand_inside(subject: Subject) -> bool:
    """Whether it may stand in any projection: what must reach the parameters as it is may not."""
    try:
        make_optimizer(make_problem(SHAPES), [Failing(subject.chain())])
    except ProjcoreError:
        return False
    return True


def _plain() -> list[Module]:
    from projcore.testing.parts import Momentum, Scale

    return [Momentum(), Scale()]


def _fail_in(module: Module, method: str, at: int) -> None:
    """Makes one call of a projection's method raise, counted from the end of the first step."""
    assert isinstance(module, ProjectionBase)
    original = getattr(module, method)
    count = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise InjectedFault(f"in {method}")
        return original(*args, **kwargs)

    setattr(module, method, failing)


def _check_modules_fail(modules: Sequence[Module]) -> bool:
    """Takes up to three steps, one of which is to fail; False if none did."""
    problem = make_problem(SHAPES)
    try:
        optimizer = make_optimizer(problem, modules)
    except InjectedFault:
        return True  # it was called when the optimizer was made
    for _ in range(3):
        point = problem.point()
        try:
            optimizer.step(problem.closure)
        except InjectedFault as error:
            ensure_equal(
                problem.point(), point, f"After an exception {error} parameters differ", FIX
            )
            take_steps(problem, optimizer, 1)
            return True
    return False
