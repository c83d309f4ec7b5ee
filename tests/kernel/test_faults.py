"""Whatever is raised in a step: parameters are bitwise what they were, and steps go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Module, Optimizer, ProjectionBase, Transform, build, registry
from projcore.modules import LBFGS, LR, Adam, Backtracking, ClipNorm, HeavyBall, StrongWolfe
from projcore.projections import (
    DCT,
    ScalarProjection,
    SOAPRotation,
    To,
    VectorProjection,
    ViewAsReal,
)
from projcore.testing.run import comes_last

SHAPES = [(3,), (2, 2)]


class Injected(Exception):
    """The fault."""


class Fault(TorchDispatchMode):
    """Raises in place of the tensor operation of that number; counts them."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at = at
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # The profiler's marks, which torch sets around a step, are no operations on tensors.
        self.count += func.namespace != "profiler"
        if self.count - 1 == self.at and func.namespace != "profiler":
            raise Injected(func)
        return func(*args, **(kwargs or {}))


def loss_of(params: Iterable[Tensor]) -> Tensor:
    """A sum of squares that is no sphere, and not yet at its minimum after some steps."""
    return torch.stack([(p - i).square().sum() for i, p in enumerate(params)]).square().sum()


def closure_of(params: list[Parameter]) -> Callable[..., Tensor]:
    def closure(backward: bool = True) -> Tensor:
        loss = loss_of(params)
        if backward:
            grads = torch.autograd.grad(loss, params)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        return loss

    return closure


def take(optimizer: Optimizer) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.step(closure_of(params) if "closure" in optimizer.needs else None)


# A retried step is bitwise the step without the fault (True), or memory has moved on already.
CHAINS: dict[str, tuple[Callable[[], list[Any]], bool]] = {
    "sgd": (lambda: [LR(0.1)], True),
    "clipped sgd": (lambda: [VectorProjection([ClipNorm(0.1)]), LR(0.1)], True),
    "momentum": (lambda: [HeavyBall(0.9), LR(0.1)], False),
    "adam": (lambda: [Adam(), LR(0.1)], True),
    "vector": (lambda: [VectorProjection([ClipNorm(1.0), Adam(), LR(0.1)])], True),
    "scalar, merged": (lambda: [ScalarProjection([Adam(), ClipNorm(1.0)]), LR(0.1)], False),
    "to": (lambda: [VectorProjection([To([Adam()], "float64")]), LR(0.1)], True),
    "master": (lambda: [To([LR(0.1)], "float64", master=True)], True),
    "adam, master": (
        lambda: [VectorProjection([To([Adam(), LR(0.1)], "float64", master=True)])],
        True,
    ),
    "nested": (
        lambda: [
            VectorProjection([To([ScalarProjection([HeavyBall(0.9)])], "float64"), ClipNorm(1.0)]),
            ViewAsReal([LR(0.1)]),
        ],
        False,
    ),
    "transformed": (lambda: [DCT([Adam()]), LR(0.1)], True),
    "rotated": (lambda: [SOAPRotation([Adam()]), LR(0.1)], True),
    "backtracking": (lambda: [VectorProjection([Backtracking()])], True),
    "lbfgs": (lambda: [VectorProjection([LBFGS(), StrongWolfe()])], True),
    "lbfgs in float64": (
        lambda: [To([VectorProjection([LBFGS(), Backtracking()])], "float64")],
        True,
    ),
}


# Their steps write more than the parameters at once: once one is written, a fault waits for the
# others, and is raised when the step is whole.
SEVERAL_WRITES = {
    "master",
    "adam, master",
    "projection",
    "rotated",
    "several",
    "to",
    "transformed",
}


def begin(chain: str, steps: int) -> Optimizer:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator) + 3) for shape in SHAPES]
    optimizer = Optimizer(params, *CHAINS[chain][0]())
    for step in range(steps + 1):
        closure_of(params)()
        if step < steps:
            take(optimizer)
    return optimizer


def copy(optimizer: Optimizer) -> Optimizer:
    """A deep copy, gradients included."""
    copied = deepcopy(optimizer)
    for mine, theirs in zip(copied.param_groups, optimizer.param_groups, strict=True):
        for param, original in zip(mine["params"], theirs["params"], strict=True):
            param.grad = original.grad.clone()
    return copied


def count_inexact(chain: str, steps: int, snapshot: Any, same: Any) -> tuple[int, int]:
    """Injects a fault at every operation; returns their number, and that of retries that differ."""
    base = begin(chain, steps)
    reference, counter = copy(base), Fault()
    with counter:
        take(reference)
    wanted = snapshot(reference)
    assert counter.count > 0
    inexact = 0
    for at in range(counter.count):
        optimizer = copy(base)
        before = snapshot(optimizer)
        with pytest.raises(Injected) as caught, Fault(at):
            take(optimizer)
        after = snapshot(optimizer)
        where = f"operation {at}, {caught.value}"
        done = not same(before["params"], after["params"])
        assert before["places"] == after["places"], where
        assert same(before["groups"], after["groups"]), where
        if "closure" not in optimizer.needs:
            assert same(before["grads"], after["grads"]), where
        if done:  # it came while parameters were written, and waited
            assert chain in SEVERAL_WRITES, where
            assert same(wanted["params"], after["params"]), where
            assert same(wanted["state"], after["state"]), where
            continue
        for one, other in zip(before["state"], after["state"], strict=True):
            assert one.keys() == other.keys(), where
        take(optimizer)
        again = snapshot(optimizer)
        moved = not same(before["params"], wanted["params"])  # as it does without the fault
        assert same(before["params"], again["params"]) != moved, where
        assert all(bool(p.isfinite().all()) for p in again["params"]), where
        inexact += not all(same(wanted[key], again[key]) for key in ("params", "state"))
    return counter.count, inexact


@pytest.mark.parametrize("chain", CHAINS)
def test_a_fault_at_every_operation_of_a_later_step(chain: str, snapshot: Any, same: Any) -> None:
    count, inexact = count_inexact(chain, 2, snapshot, same)
    print(f"{chain}: {count} operations, {inexact} retries differ")
    assert (inexact == 0) == CHAINS[chain][1]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_fault_at_every_operation_of_the_first_step(chain: str, snapshot: Any, same: Any) -> None:
    """Memory is not there yet, so it cannot have moved: the retry is always exact."""
    _, inexact = count_inexact(chain, 0, snapshot, same)
    assert inexact == 0


def registered() -> list[str]:
    """Specs of all registered modules, with each example's settings."""
    specs = []
    for component in registry.components("module"):
        found = component.example
        for example in [found] if isinstance(found, dict) else found or []:
            specs.append(str(registry.load("module", component.qualified)(**example)))
    return specs


@pytest.mark.parametrize("spec", registered())
def test_a_fault_at_every_operation_of_every_module(
    spec: str, snapshot: Any, same: Any, monkeypatch: Any
) -> None:
    # Rules about shapes find no matrix in a vector.
    chain: list[Module] = [build(spec) if spec.startswith("route") else VectorProjection([spec])]
    if not comes_last(*chain):
        chain.append(LR(1e-3))  # the loss is steep
    it = "several" if spec.startswith(("polyak", "lion")) else "it"
    monkeypatch.setitem(CHAINS, it, (lambda: chain, False))
    count, inexact = count_inexact(it, 2, snapshot, same)
    print(f"{spec}: {count} operations, {inexact} retries differ")
    if not any(begin(it, 1).state.values()):
        assert inexact == 0  # without memory there is nothing to differ


FUSE = {"left": -1, "burnt": 0}


def burn(error: type[BaseException] = KeyboardInterrupt) -> None:
    """Raises when the fuse has burnt down."""
    FUSE["burnt"] += 1
    FUSE["left"] -= 1
    if FUSE["left"] == 0:
        raise error


class Fusible(Transform):
    scope = "tensor"

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        burn()
        return [tensor / 2 for tensor in tensors]


class FusibleProjection(ProjectionBase):
    """Reverses each tensor, in as many calls as there are: each may be the last."""

    scope = "tensor"

    def project(self, tensors: list[Tensor], *args: Any) -> list[Tensor]:
        burn()
        return [tensor.flip(-1) for tensor in tensors]

    def unproject(self, projected_tensors: Iterable[Tensor], *args: Any) -> list[Tensor]:
        burn()
        return [tensor.flip(-1) for tensor in projected_tensors]


class FusibleRefresh(FusibleProjection):
    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[dict[str, Any]],
        settings: Any,
    ) -> list[Any]:
        burn()
        return [{"count": state.get("count", 0) + 1} for state in states]


PLACES: dict[str, Callable[[], list[Any]]] = {
    "module": lambda: [Adam(), Fusible(), LR(0.1)],
    "module in a vector": lambda: [VectorProjection([Adam(), Fusible()]), LR(0.1)],
    "module in scalars": lambda: [ScalarProjection([Fusible()]), LR(0.1)],
    "projection": lambda: [FusibleProjection([Adam()]), LR(0.1)],
    "nested": lambda: [VectorProjection([FusibleProjection([ClipNorm(1.0)]), Fusible(), LR(0.1)])],
    "refresh": lambda: [FusibleRefresh([FusibleRefresh([HeavyBall(0.9)])]), LR(1e-4)],
    "around a search": lambda: [FusibleProjection([LBFGS(), StrongWolfe()], True, True, True)],
    "closure": lambda: [VectorProjection([LBFGS(), Backtracking()])],
    "closure, no search": lambda: [Adam(), LR(0.1)],
}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", PLACES)
def test_an_exception_at_every_call(
    place: str, error: type[BaseException], snapshot: Any, same: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(burn, "__defaults__", (error,))
    params = [Parameter(torch.arange(1.0, 5.0)), Parameter(torch.eye(2))]
    optimizer = Optimizer(params, *PLACES[place]())
    plain = closure_of(params)

    def closure(backward: bool = True) -> Tensor:
        if place.startswith("closure"):
            burn()
        return plain(backward=backward)

    for _ in range(2):
        FUSE.update(left=-1, burnt=0)
        optimizer.step(closure)
    calls = FUSE["burnt"]
    assert calls >= 1
    faults = 0
    for at in range(1, 2 * calls):
        reference = copy(optimizer)
        reference.step(closure_of([p for group in reference.param_groups for p in group["params"]]))
        FUSE["left"] = at
        before = snapshot(optimizer)
        try:
            optimizer.step(closure)
        except error:
            faults += 1
            after = snapshot(optimizer)
            if not same(before["params"], after["params"]):
                assert place in SEVERAL_WRITES
                assert same(snapshot(reference)["params"], after["params"])
                assert same(snapshot(reference)["state"], after["state"])
            assert before["places"] == after["places"]
            assert same(before["groups"], after["groups"])
        FUSE["left"] = -1
        optimizer.step(closure)
        assert all(bool(p.isfinite().all()) for p in params)
    assert faults >= calls / 2


def test_the_fault_is_seen_by_a_check_like_these(snapshot: Any, same: Any) -> None:
    """A step that writes parameter by parameter would be caught."""
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    before = [param.detach().clone() for param in params]

    def step() -> None:
        for param in params:
            param.sub_(1.0)

    with pytest.raises(Injected), Fault(1), torch.no_grad():
        step()
    assert not same(before, [param.detach().clone() for param in params])


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_step_whose_closure_failed_is_tried_again_as_if_it_had_not(failing: int) -> None:
    """Memory that modules before the line search write in place is as it was."""

    def train(fails: bool) -> torch.Tensor:
        weight = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)
        optimizer = Optimizer([weight], "vector([adam(), lr(0.5), backtracking()])")
        calls = 0

        def closure(backward: bool = True) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if fails and calls == failing:
                raise RuntimeError("the closure failed")
            optimizer.zero_grad()
            loss = (weight**4).sum()
            if backward:
                loss.backward()
            return loss

        for _ in range(4):
            try:
                optimizer.step(closure)
            except RuntimeError:
                optimizer.step(closure)
        return weight.detach()

    assert torch.equal(train(fails=True), train(fails=False))
