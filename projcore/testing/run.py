"""Runs optimizers on problems, for the checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.engine.plan import PASSES
from projcore.errors import ProjcoreError, StepSizeWarning
from projcore.testing.conditions import note_modules
from projcore.testing.law import NotApplicable
from projcore.testing.map import Map, learnt
from projcore.testing.problem import Problem, make_problem
from projcore.testing.subject import Subject


def make_optimizer(
    problem: Problem,
    modules: Sequence[Module],
    passes: frozenset[str] = PASSES,
    groups: Any = None,
    compile: Any = False,
) -> Optimizer:
    """Returns an optimizer whose plans are rewritten by some of the passes.

    That nothing sets its step size is of no importance here.
    """
    note_modules(modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)
        params = problem.params if groups is None else groups
        optimizer = Optimizer(params, *modules, compile=compile)
    if passes != PASSES:  # what rejects its tensors inside does so when the optimizer is built
        optimizer._use_passes(passes)
        optimizer.plan_of(optimizer.param_groups, building=True)
    return optimizer


def comes_last(*modules: Module) -> bool:
    """Whether nothing may follow these modules, since their result must reach the parameters."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)
        try:
            optimizer = Optimizer([weight], *modules)
        except ProjcoreError:
            return False
    nodes = optimizer.plan_of(optimizer.param_groups).region.walk()
    return any(node.comes_last for node in nodes)


def take_steps(problem: Problem, optimizer: Optimizer, count: int) -> list[Tensor]:
    """Takes steps with the problem's closure; returns where they led."""
    for _ in range(count):
        optimizer.step(problem.closure)
    return problem.point()


def train(
    problem: Problem, modules: Sequence[Module], count: int, passes: frozenset[str] = PASSES
) -> list[Tensor]:
    """Makes an optimizer and takes steps; returns where they led."""
    return take_steps(problem, make_optimizer(problem, modules, passes), count)


def maps(subject: Subject) -> Iterator[tuple[Map, Problem, list[Tensor], float]]:
    """Yields a projection's map in each number format that it accepts.

    With it come the problem, its gradients, and a tolerance: 1024 times the coarsest rounding.
    """
    from projcore.testing.parts import Scale

    for dtype in (torch.float64, torch.float32, torch.complex128):
        problem = make_problem(dtype=dtype)
        loss = problem.closure()
        grads = [parameter.grad for parameter in problem.params]
        given = [grad for grad in grads if grad is not None]
        try:
            made = learnt(subject.around(Scale()), given, problem.point(), loss)
        except (ProjcoreError, NotApplicable):
            if dtype is torch.float64:
                raise
            continue  # rejected with a clear error, or not projected
        found = {tensor.dtype for tensor in (*problem.params, *made.inside)}
        tolerance = 1024 * max(torch.finfo(each).eps for each in found)
        yield made, problem, given, tolerance


def remembered(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Returns the memory of each parameter, by name."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [dict(optimizer.state.get(p, {})) for p in parameters]


@contextmanager
def unchanged_version(*lists: Sequence[Tensor]) -> Iterator[list[str]]:
    """Yields a list that on leaving says which of the tensors were written into."""
    before = [[(tensor, tensor._version) for tensor in tensors] for tensors in lists]
    written: list[str] = []
    yield written
    for i, pairs in enumerate(before):
        for j, (tensor, version) in enumerate(pairs):
            if tensor._version != version:
                written.append(f"{i}:{j}")
