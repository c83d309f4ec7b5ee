"""The passes of a plan change how a step runs, and not its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from projcore import Module
from projcore.engine.passes import split as splitting
from projcore.engine.plan import PASSES
from projcore.errors import ProjcoreError
from projcore.testing.law import NotApplicable, ensure, ensure_close, law, listed
from projcore.testing.parts import FoldedScale, Merge, Mix, Scale
from projcore.testing.problem import make_problem
from projcore.testing.run import comes_last, make_optimizer, remembered
from projcore.testing.subject import Subject

STEPS = 4
REST = PASSES - {"hoist"}
SMALL = 8  # elements in a block, of the few that there are
# Of float64; kernels that write parameters round in another order, and what iterates, such as
# conjugate gradients, or divides by small residuals, as Fira does, amplifies it.
TOLERANCE = 1e-8
FIX = (
    "Coefficients, factor and writer must do what apply does, and a writer must work in place; "
    "scope and geometry must be true."
)


@law()
def passes(subject: Subject) -> str | None:
    """Steps and state are the same without passes, with each pass alone, and with all.

    Alone and inside projections, with a gradient that is missing in one step, up to the rounding of
    kernels; also with a new plan for each step. If elementwise modules run outside of a layout
    (``"hoist"``), a parameter without a gradient and its state do not change, while in the layout
    it has a gradient of zero; and state is kept with each parameter. So hoisting is compared only
    where all have gradients, and by the parameters.

    Returns the errors.
    """
    refused = []
    for name, modules, bare in _nestings(subject):
        try:
            _check(name, modules, bare=bare)
        except (ProjcoreError, NotApplicable) as error:
            refused.append(f"{name}: {error}")
    return listed(refused)


def _nestings(subject: Subject) -> Iterator[tuple[str, Callable[[], Sequence[Module]], bool]]:
    def writing() -> Sequence[Module]:
        """With a scale that is folded, so that the module before it writes, if it can."""
        chain = [FoldedScale() if type(each) is Scale else each for each in subject.chain()]
        last = subject.kind == "module" or comes_last(*chain)
        return chain if last else [*chain, FoldedScale(0.5)]

    yield subject.name, subject.chain, True
    yield f"{subject.name}, which writes,", writing, True
    yield f"{subject.name} in Merge", lambda: [Merge(subject.chain())], False
    yield f"{subject.name} in Mix", lambda: [Mix(subject.chain())], False


def _check(name: str, modules: Callable[[], Sequence[Module]], bare: bool) -> None:
    plain, hoisted = (_run(modules, frozenset(each), missing=False) for each in ((), ("hoist",)))
    what = f"{name} does something else"
    ensure_close(hoisted[0], plain[0], TOLERANCE, f"Outside of a layout {what}", FIX)
    hoist = frozenset() if bare else frozenset({"hoist"})
    expected, state = _run(modules, hoist)
    each_alone = [hoist | {each} for each in sorted(PASSES - {"hoist"})] if bare else []
    for chosen, anew in [*((each, False) for each in [*each_alone, hoist | REST]), (hoist, True)]:
        how = f"with the passes {sorted(chosen)}{', planned anew in each step' * anew}"
        point, kept = _run(modules, chosen, anew)
        ensure_close(point, expected, TOLERANCE, f"{what} {how}", FIX)
        for one, two in zip(kept, state, strict=True):
            ensure(one.keys() == two.keys(), f"{name} has other state {how}.", FIX)
            ensure_close(_tensors(one), _tensors(two), TOLERANCE, f"{what} {how}", FIX)


def _run(
    modules: Callable[[], Sequence[Module]],
    chosen: frozenset[str],
    anew: bool = False,
    missing: bool = True,
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    problem = make_problem()
    optimizer = make_optimizer(problem, modules(), chosen)
    with _small_blocks():
        for step in range(STEPS):
            if anew:
                optimizer._forget_plans()
            problem.missing = frozenset({1} if missing and step == STEPS - 2 else ())
            optimizer.step(problem.closure)
    return problem.point(), remembered(optimizer)


@contextmanager
def _small_blocks() -> Iterator[None]:
    size = splitting.BLOCK
    splitting.BLOCK = SMALL
    try:
        yield
    finally:
        splitting.BLOCK = size


def _tensors(entries: dict[str, Any]) -> list[Tensor]:
    return [torch.as_tensor(entries[key]) for key in sorted(entries)]
