"""Nothing changes but the parameters and its own memory."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from projcore import Current, Module
from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.laws.resume import ensure_same_memory
from projcore.testing.map import Map
from projcore.testing.parts import Spy
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import comes_last, make_optimizer, maps, remembered
from projcore.testing.subject import Subject

READ_ONLY = "What it is given is read-only: make a new tensor, and write into its own state only."


@law()
def side_effects(subject: Subject) -> None:
    """Arguments, gradients, storage, settings and global random state do not change.

    Arguments are never modified, by version counter and by value; `project` and `unproject` do not
    change the state; ``p.grad`` is the same tensor and ``p.data_ptr()`` the same address; no result
    requires grad.
    """
    with same_environment():
        if subject.kind == "projection":
            _check_crossings(subject)
        for dtype in (torch.float64, torch.float32):
            _check_steps(subject, dtype)


def _check_steps(subject: Subject, dtype: torch.dtype) -> None:
    spies = [Spy(), Spy()]
    chain = subject.chain()
    modules: list[Module] = [spies[0], *chain]
    if not comes_last(*chain):
        modules.append(spies[1])
    problem = make_problem(dtype=dtype)
    optimizer = make_optimizer(problem, modules)
    addresses = [parameter.data_ptr() for parameter in problem.params]
    for _ in range(3):
        problem.closure()
        given = [parameter.grad for parameter in problem.params]
        copies = [tensor.clone() for tensor in given if tensor is not None]
        versions = [tensor._version for tensor in given if tensor is not None]
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        kept = copy.deepcopy(groups)
        optimizer.step(_keeping_gradients(problem))
        ensure(groups == kept, "A step changed the parameter groups.", "Settings are read-only.")
        for i, parameter in enumerate(problem.params):
            ensure(
                parameter.grad is given[i],
                f"A step replaced the gradient of parameter {i}.",
                "Never touch p.grad; an objective evaluates elsewhere without changing it.",
            )
            ensure(
                parameter.grad is None or parameter.grad._version == versions[i],
                f"A step wrote into the gradient of parameter {i}.",
                READ_ONLY,
            )
            ensure(
                parameter.data_ptr() == addresses[i],
                f"A step moved the storage of parameter {i}.",
                "Never use set_ or .data.",
            )
            ensure(parameter.requires_grad, f"Parameter {i} no longer requires grad.", READ_ONLY)
        ensure_equal(
            [p.grad for p in problem.params if p.grad is not None],
            copies,
            "A step changed gradients",
            READ_ONLY,
        )
        for spy in spies:
            for handed, values in spy.seen:
                ensure_equal(handed, values, "A step wrote into an update", READ_ONLY)
                ensure(
                    not any(tensor.requires_grad for tensor in handed),
                    "An update requires grad.",
                    "Detach it.",
                )
            spy.seen.clear()
    for entries in remembered(optimizer):
        for key, value in entries.items():
            ensure(
                not isinstance(value, Tensor) or not value.requires_grad,
                f"{key!r} in its state requires grad.",
                "Detach it.",
            )


def _keeping_gradients(problem: Problem) -> Callable[..., Tensor]:
    """Returns a closure that, when first called, leaves the gradients as they are."""
    calls = 0

    def closure(backward: bool = True) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.closure(backward) if calls > 1 else problem.closure(backward=False)

    return closure


@torch.no_grad()
def _check_crossings(subject: Subject) -> None:
    for made, problem, grads, _ in maps(subject):
        point = problem.point()
        loss = problem.closure()
        with untouched("refresh", point, grads, [loss]):
            made.learn(grads, point, grads, loss)
        currents: tuple[Current, ...] = ("params", "grads", "update")
        for current in currents:
            tensors = point if current == "params" else grads
            with untouched("project", tensors), same_state(made, "project"):
                inside = made.project(tensors, current)
            with untouched("unproject", inside), same_state(made, "unproject"):
                made.unproject(inside, current)
        with untouched("combine", grads, made.inside, inside):
            made.combine(grads, inside)


@contextmanager
def untouched(what: str, *lists: list[Tensor]) -> Iterator[None]:
    """Raises on leaving if one of the tensors was written into."""
    before = [[(tensor, tensor._version) for tensor in tensors] for tensors in lists]
    yield
    for tensors, pairs in zip(lists, before, strict=True):
        same = len(tensors) == len(pairs) and all(
            tensor is old and tensor._version == version
            for tensor, (old, version) in zip(tensors, pairs, strict=True)
        )
        ensure(same, f"{what} wrote into its arguments.", READ_ONLY)


@contextmanager
def same_state(made: Map, what: str) -> Iterator[None]:
    """Raises on leaving if a projection's states changed."""
    kept = copy.deepcopy(made.states)
    yield
    ensure_same_memory(
        made.states,
        kept,
        f"After {what}",
        "project and unproject change nothing: learn the map in refresh.",
    )


@contextmanager
def same_environment() -> Iterator[None]:
    """Raises on leaving if a global random state or a default of torch changed."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # An earlier check may have left the states where a bad component would put them again.
        torch.manual_seed(17)
        random.seed(17)
        if numpy is not None:
            numpy.random.seed(17)
        before = _environment()
        try:
            yield
            after = _environment()
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
    for name, value in after.items():
        old = before.get(name, value)
        same = torch.equal(value, old) if isinstance(value, Tensor) else value == old
        ensure(
            same,
            f"It changed {name}.",
            "Draw random numbers from a torch.Generator made from a seed in its state.",
        )


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        found["numpy's random state"] = (name, keys.tobytes(), *rest)
    return found
