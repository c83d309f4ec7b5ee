"""Saves every registered component in every registered projection, and goes on elsewhere.

``python resuming.py FILE PARTNERS`` loads what `save` has written, takes the remaining steps, and
prints a line for each case whose end is not bitwise that of the run that never stopped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import torch

from projcore import Module, registry
from projcore.errors import ProjcoreError
from projcore.testing.law import Violation, ensure_equal
from projcore.testing.laws.resume import ensure_same_memory
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps
from projcore.testing.subject import Subject, as_subjects

STEPS = 3
SHAPES = ((4, 3), (5,), (), (2, 3, 2))
DTYPES = (torch.float32, torch.bfloat16, torch.complex64)

Build = Callable[[], list[Module]]


def subjects(kind: str) -> list[Subject]:
    return [s for component in registry.components(kind) for s in as_subjects(component)]


def cases(partners: int) -> Iterator[tuple[str, Build, tuple[torch.dtype, ...]]]:
    """Yields each module bare in all dtypes, and each component in and around some others.

    All pairs would be tens of thousands: partners, so many for each, and dtypes are dealt out in
    turn.
    """
    modules, projections = subjects("module"), subjects("projection")
    for module in modules:
        yield module.name, module.chain, DTYPES
    dtypes, outers, inners = map(itertools.cycle, (DTYPES, projections, modules))
    pairs = [(outer, module) for module in modules for outer in itertools.islice(outers, partners)]
    pairs += [
        (outer, module) for outer in projections for module in itertools.islice(inners, partners)
    ]
    for outer, module in pairs:
        yield (
            f"{module.name} in {outer.name}",
            lambda o=outer, m=module: [o.around(*m.chain())],
            (next(dtypes),),
        )
    for outer in projections:
        for inner in itertools.islice(outers, partners):
            module = next(inners)
            yield (
                f"{module.name} in {inner.name} in {outer.name}",
                lambda o=outer, i=inner, m=module: [o.around(i.around(*m.chain()))],
                (next(dtypes),),
            )


def save(path: str, partners: int) -> tuple[list[str], list[str]]:
    """Takes steps, saves, takes more, saves where they led; returns which ran or were refused."""
    saved, refused = {}, []
    made = [
        (f"{name}, {dtype}", build, dtype)
        for name, build, each in cases(partners)
        for dtype in each
    ]
    for name, build, dtype in made:
        problem = make_problem(SHAPES, dtype)
        try:
            optimizer = make_optimizer(problem, build())
            take_steps(problem, optimizer, STEPS)
        except ProjcoreError as error:
            refused.append(f"{name}: {error}")
            continue
        entry = {"point": problem.point(), "optimizer": clone(optimizer.state_dict())}
        entry["expected"] = take_steps(problem, optimizer, STEPS)
        entry["memory"] = clone(remembered(optimizer))
        saved[name] = entry
    torch.save(saved, path)
    return list(saved), refused


def clone(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    return [clone(item) for item in value] if isinstance(value, list) else value


def resume(path: str, partners: int) -> Iterator[str]:
    """Goes on from what was saved; yields what does not end where it should."""
    builds = {name: build for name, build, _ in cases(partners)}
    for name, entry in torch.load(path, weights_only=True).items():
        problem = Problem(entry["point"])
        optimizer = make_optimizer(problem, builds[name.rpartition(", ")[0]]())
        try:
            optimizer.load_state_dict(entry["optimizer"])
            ensure_equal(take_steps(problem, optimizer, STEPS), entry["expected"], name, "")
            ensure_same_memory(remembered(optimizer), entry["memory"], f"{name}:", "")
        except (Violation, ProjcoreError) as error:
            yield f"{name}: {type(error).__name__}: {error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in resume(sys.argv[1], int(sys.argv[2])):
        print(line)
