"""Stacks of equal shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.testing.map import Map
from projcore.testing.parts import Momentum, Scale, UnitNorm
from projcore.testing.strategies import tensor_lists
from projcore_structural import Freeze, Identity, Route, Stack

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)


class CountedOperations(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@settings(max_examples=60, deadline=None)
@given(tensor_lists(dtypes=DTYPES, max_tensors=6))
def test_stacks_hold_the_tensors_of_each_shape(tensors: list[Tensor]) -> None:
    made = Map(Stack([Scale()]), tensors)
    inside = made.project(tensors, "update")
    keys = list(dict.fromkeys((t.shape, t.dtype) for t in tensors))
    assert [(stack.shape[1:], stack.dtype) for stack in inside] == keys
    for stack, key in zip(inside, keys, strict=True):
        same = [tensor for tensor in tensors if (tensor.shape, tensor.dtype) == key]
        assert len(stack) == len(same)
        assert all(map(torch.equal, stack, same))
    assert all(map(torch.equal, made.unproject(inside, "update"), tensors))


def start(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes
    ]


def run(optimizer: Optimizer, params: list[Tensor], steps: int = 3) -> list[Tensor]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)
        optimizer.step()
    return [param.detach() for param in params]


SHAPES = ((4, 3), (5,), (4, 3), (), (4, 3), (), (5,), (2, 3, 2))
MUON = "muon(weight_decay=0.0, flatten=True, dtype=None)"


@pytest.mark.parametrize(
    "modules",
    [
        lambda: [UnitNorm()],
        lambda: ["clip_norm(0.5)"],  # the norm of all
        lambda: ["clip_norm(0.5, per_tensor=True)"],
        lambda: ["normalize()"],
        lambda: [MUON],
        lambda: [Momentum(), UnitNorm(), Momentum()],
        lambda: [Identity([UnitNorm()])],
    ],
)
def test_stacked_is_looped(modules: Any) -> None:
    params, outside = start(*SHAPES), start(*SHAPES)
    actual = run(Optimizer(params, Stack(modules()), Scale()), params)
    expected = run(Optimizer(outside, *modules(), Scale()), outside)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_many_tensors_take_few_operations() -> None:
    counts = []
    for number in (2, 2000):
        tensors = [torch.ones(3, 2) for _ in range(number)]
        made = Map(Stack([Scale()]), tensors)
        with CountedOperations() as counted:
            made.unproject(made.project(tensors, "update"), "update")
        counts.append(counted.count)
    assert counts[0] == counts[1] <= 3  # stack, unbind


def test_modules_run_once_for_each_shape() -> None:
    counts = []
    for number in (2, 200):
        params = start(*[(3, 2)] * number)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = Optimizer(params, Stack(["heavy_ball(0.9)", MUON]), Scale())
        optimizer.step()
        with CountedOperations() as counted:
            optimizer.step()
        counts.append(counted.count - number)  # parameters are detached
    assert counts[0] == counts[1] < 100


def test_memory_is_kept_with_the_first_and_resumes() -> None:
    params = start(*SHAPES)
    optimizer = Optimizer(params, Stack([UnitNorm(), MUON]), Scale())
    run(optimizer, params)
    kept = [sum("momentum_buffer" in key for key in optimizer.state[p]) for p in params]
    assert kept == [1, 1, 0, 1, 0, 0, 0, 1]


def test_a_tensor_alone_in_its_stack_has_a_name() -> None:
    model = torch.nn.Linear(3, 2)
    rules = {"bias": Freeze(), "*": None}
    optimizer = Optimizer(model.named_parameters(), Stack([Route(rules)]), Scale())
    before = [param.detach().clone() for param in model.parameters()]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True)]
    assert moved == [True, False]


def test_shapes_inside_are_those_of_entries() -> None:
    params = start((4, 3), (4, 3), (5,))
    route = Route({"shape==4x3": UnitNorm(), "ndim==1": None})
    before = [param.detach().clone() for param in params]
    run(Optimizer(params, Stack([route])), params, steps=1)
    norms = [float((p.detach() - b).norm()) for p, b in zip(params, before, strict=True)]
    assert norms[:2] == pytest.approx([1, 1])
    assert norms[2] != pytest.approx(1)
