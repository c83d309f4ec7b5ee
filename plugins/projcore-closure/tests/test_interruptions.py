"""Steps that fail, at any call of the closure or any operation, and runs that are resumed."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Module, Optimizer, ProjectionBase
from projcore.modules import (
    LBFGS,
    LR,
    SAM,
    SPSA,
    Backtracking,
    FiniteDifference,
    HeavyBall,
    NewtonCG,
    StrongWolfe,
)
from projcore.projections import To, VectorProjection


class Halves(ProjectionBase):
    """Keeps the first half of each tensor's elements, tripled: lossy, not orthonormal."""

    scope = "tensor"

    def __init__(self, modules: Any) -> None:
        super().__init__(modules, project_params=True, project_grad=True)

    def project(self, tensors, params, grads, loss, states, settings, current):
        factor = 1 / 3 if current == "params" else 3
        return [factor * t.reshape(-1)[: (t.numel() + 1) // 2] for t in tensors]

    def unproject(self, projected_tensors, params, *args):
        return [
            torch.cat([3 * z, z.new_zeros(p.numel() - z.numel())]).reshape(p.shape)
            for z, p in zip(projected_tensors, params, strict=True)
        ]


SEARCHES: dict[str, Callable[[], list[Any]]] = {
    "strong wolfe": lambda: [LBFGS(history_size=2), StrongWolfe(c2=0.1)],
    "backtracking": lambda: [LBFGS(history_size=2), Backtracking(step_size=2.0)],
    "newton cg": lambda: [NewtonCG(central=True), StrongWolfe()],
    "sam": lambda: [SAM(0.1), LBFGS(history_size=2), LR(0.5)],
    "spsa": lambda: [SPSA(samples=2), HeavyBall(0.5), LR(0.01)],
    "finite difference": lambda: [FiniteDifference(), LBFGS(history_size=2), StrongWolfe()],
}
PLACES: dict[str, Callable[[Any], list[Any]]] = {
    "bare": lambda modules: modules,
    "vector": lambda modules: [VectorProjection(modules)],
    "halves in vector in to": lambda modules: [
        To([VectorProjection([Halves(modules)])], "float64")
    ],
}
everywhere = pytest.mark.parametrize("place", PLACES)
with_each = pytest.mark.parametrize("search", SEARCHES)


def bits(problem, optimizer: Optimizer) -> list[Any]:
    """Parameters, gradients and memory, to be compared bitwise."""
    memory = [value for entries in optimizer.state.values() for value in entries.values()]
    grads = [parameter.grad for parameter in problem.params if parameter.grad is not None]
    return [t.detach().clone() for t in (*problem.params, *grads, *memory)]


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


@pytest.mark.pairwise
@everywhere
@with_each
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_step_retried_is_the_step(make, place, search, error, steps):
    """The closure fails at each of its calls in a step; the history is new, short, or full."""
    problem, twin = make(), make()
    problem.error = error
    optimizer = Optimizer(problem.params, *PLACES[place](SEARCHES[search]()))
    other = Optimizer(twin.params, *PLACES[place](SEARCHES[search]()))
    for _ in range(steps):
        optimizer.step(problem.closure)
        other.step(twin.closure)
    calls = twin.calls
    other.step(twin.closure)
    calls = twin.calls - calls
    assert calls > 1
    before = problem.point()
    for call in range(1, calls + 1):
        problem.fail_at = problem.calls + call
        with pytest.raises(error, match="injected"):
            optimizer.step(problem.closure)
        assert same(before, problem.point())
    for _ in range(3):
        optimizer.step(problem.closure)
        assert same(bits(problem, optimizer), bits(twin, other))
        other.step(twin.closure)


class Injected(Exception):
    """Raised on purpose."""


class FailAt(TorchDispatchMode):
    """Raises at one of the operations."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace != "profiler"
        if self.count == self.fail_at:
            raise Injected
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("search", ["strong wolfe", "backtracking", "sam", "spsa"])
@pytest.mark.parametrize("place", ["bare", "vector"])
def test_a_failure_at_any_operation_is_undone(make, place, search):
    problem, twin = make([(3,), (2, 2)]), make([(3,), (2, 2)])
    optimizer = Optimizer(problem.params, *PLACES[place](SEARCHES[search]()))
    other = Optimizer(twin.params, *PLACES[place](SEARCHES[search]()))
    for _ in range(5):
        optimizer.step(problem.closure)
        other.step(twin.closure)
    before = problem.point()
    with FailAt() as mode:
        other.step(twin.closure)
    after = bits(twin, other)
    saved = copy.deepcopy(optimizer.state_dict())
    for k in range(1, mode.count + 1):
        with FailAt(k), contextlib.suppress(Injected):
            optimizer.step(problem.closure)
            # It was in what puts the parameters back, which is tried again.
            assert same(bits(problem, optimizer), after), k
            with torch.no_grad():
                torch._foreach_copy_(problem.params, before)
            optimizer.load_state_dict(saved)
        assert same(before, problem.point()), k
    optimizer.step(problem.closure)
    assert same(bits(problem, optimizer), after)


class Fuse(Module):
    """Raises while it is blown."""

    blown = False

    def step(self, update, objective, state):
        if self.blown:
            raise Injected
        return update


@everywhere
@pytest.mark.parametrize("history_size", [1, 2, 3])
def test_what_a_failed_step_wrote_is_never_read(make, place, history_size):
    """The step fails after it made a pair. The next one has a gradient that makes none."""
    problem, twin, fuse = make(), make(), Fuse()
    optimizer = Optimizer(problem.params, *PLACES[place]([LBFGS(history_size=history_size), fuse]))
    other = Optimizer(twin.params, *PLACES[place]([LBFGS(history_size=history_size), fuse]))
    for _ in range(6):
        optimizer.step(problem.closure)
        other.step(twin.closure)
    before = [parameter.grad.clone() for parameter in problem.params]
    fuse.blown = True
    with pytest.raises(Injected):
        optimizer.step(problem.closure)
    fuse.blown = False
    for parameters, each in ((problem.params, optimizer), (twin.params, other)):
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad.clone()
        each.step()
    assert same(problem.point(), twin.point())


@pytest.mark.pairwise
@everywhere
@with_each
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_resumes_exactly(make, place, search, steps):
    straight, problem = make(), make()
    one = Optimizer(straight.params, *PLACES[place](SEARCHES[search]()))
    for _ in range(steps):
        one.step(straight.closure)
    file = io.BytesIO()
    torch.save({"params": straight.point(), "optimizer": one.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        torch._foreach_copy_(problem.params, saved["params"])
    other = Optimizer(problem.params, *PLACES[place](SEARCHES[search]()))
    other.load_state_dict(saved["optimizer"])
    for _ in range(4):
        one.step(straight.closure)
        other.step(problem.closure)
        assert same(bits(straight, one), bits(problem, other))


@everywhere
def test_a_deep_copy_goes_its_own_way(make, place):
    problem = make()
    optimizer = Optimizer(problem.params, *PLACES[place]([LBFGS(history_size=2), StrongWolfe()]))
    for _ in range(4):
        optimizer.step(problem.closure)
    twin, copied = copy.deepcopy((problem, optimizer))
    kept = bits(twin, copied)
    optimizer.step(problem.closure)
    assert same(bits(twin, copied), kept)
    copied.step(twin.closure)
    assert same(bits(twin, copied), bits(problem, optimizer))
