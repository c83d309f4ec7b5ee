"""Trajectories on a noisy quadratic, and the places in which modules must give the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from projcore import Module, Optimizer
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

Place = Callable[[Sequence[Module]], list[Module]]

PLACES: dict[str, Place] = {
    "bare": list,
    "vector": lambda modules: [VectorProjection(modules)],
    "scalar": lambda modules: [ScalarProjection(modules)],
    "to": lambda modules: [To(modules, "float64")],
    "scalar in to in vector": lambda modules: [
        VectorProjection([To([ScalarProjection(modules)], "float64")])
    ],
}
COMPLEX_PLACES: dict[str, Place] = {
    "bare": list,
    "view as real": lambda modules: [ViewAsReal(modules)],
    "view as real in vector": lambda modules: [VectorProjection([ViewAsReal(modules)])],
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return PLACES[request.param]


@pytest.fixture(params=COMPLEX_PLACES)
def complex_place(request: pytest.FixtureRequest) -> Place:
    return COMPLEX_PLACES[request.param]


Shapes = tuple[tuple[int, ...], ...]

# A matrix, which is made transposed, a vector, a number and an empty tensor.
SHAPES: Shapes = ((4, 3), (5,), (), (0, 2))


def parameters(dtype: torch.dtype, shapes: Shapes = SHAPES) -> list[Tensor]:
    """Parameters of these shapes, the first, a matrix, transposed."""
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]
    made[0] = made[0].t()
    return [tensor.requires_grad_() for tensor in made]


@cache
def noises(dtype: torch.dtype, steps: int, shapes: Shapes) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(2)
    final = [param.shape for param in parameters(dtype, shapes)]
    return [
        [torch.randn(shape, generator=random, dtype=dtype) for shape in final] for _ in range(steps)
    ]


def trajectory(
    make: Callable[[Any], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float64,
    steps: int = 200,
    groups: Sequence[dict[str, Any]] | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    shapes: Shapes = SHAPES,
) -> Tensor:
    """Returns all parameters after each step on ``|p - 1|^2 / 2`` with noise in the gradients."""
    params = parameters(dtype, shapes)
    if groups:
        halves = [params[0::2], params[1::2]]
        given = [{"params": half, **group} for half, group in zip(halves, groups, strict=True)]
        optimizer = make(given)
    else:
        optimizer = make(params)
    scheduler = schedule(optimizer) if schedule else None
    points = []
    for step in noises(dtype, steps, shapes):
        for param, noise in zip(params, step, strict=True):
            param.grad = param.detach() - 1 + noise
        optimizer.step()
        if scheduler:
            scheduler.step()
        points.append(torch.cat([param.detach().reshape(-1) for param in params]))
    return torch.stack(points)


@pytest.fixture(params=["bare", "to"])
def tensor_place(request: pytest.FixtureRequest) -> Place:
    """Where a module sees each tensor by itself."""
    return PLACES[request.param]


@pytest.fixture
def follow() -> Callable[..., Tensor]:
    return trajectory


@pytest.fixture
def same() -> Callable[[Tensor, Tensor], None]:
    """Asserts that trajectories are equal to rounding, relative to their largest element."""

    def check(ours: Tensor, theirs: Tensor) -> None:
        double = ours.dtype in (torch.float64, torch.complex128)
        tolerance = 1e-12 if double else 1e-5
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * size)

    return check


class OnAccelerators(TorchDispatchMode):
    """Keeps the operations on accelerators with their arguments; of fake tensors all counts are 1.

    No value of a device may be read.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not all(tensor.is_cpu for tensor in tensors):
            assert name != "_local_scalar_dense"
            views = any(
                result.alias_info and not result.alias_info.is_write
                for result in func._schema.returns
            )
            if not (views or name in ("device", "empty_like", "new_empty")):
                self.calls.append((name, args, kwargs))
        elif name == "_local_scalar_dense":
            return 1
        return func(*args, **kwargs)


@pytest.fixture
def launches() -> Callable[..., list[tuple[str, Any, Any]]]:
    """Takes two steps of fake parameters on accelerators; returns the operations of the second."""

    def take(
        *modules: Module,
        shapes: Shapes = ((5, 7), (3,), (64,)),
        devices: Sequence[str] = ("cuda",),
    ) -> list[tuple[str, Any, Any]]:
        mode = OnAccelerators()
        with FakeTensorMode(), mode:
            params = [
                torch.nn.Parameter(torch.empty(shape, device=device))
                for shape in shapes
                for device in devices
            ]
            for param in params:
                param.grad = torch.empty_like(param)
            optimizer = Optimizer(params, *modules)
            optimizer.step()
            mode.calls.clear()
            optimizer.step()
        return mode.calls

    return take
