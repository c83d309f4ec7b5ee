r"""Methods run by hand on :math:`z \mapsto f(x_0 + U (z - z_0))`, with autograd: the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Module, ProjectionBase
from projcore.testing.map import Map
from projcore.testing.parts import Armijo, EveryFact, Moments, Momentum, Scale
from projcore.testing.problem import Problem, flat, shaped

Function = Callable[[Tensor], Tensor]
Method = Callable[[Function, Tensor, "dict[str, Any]"], Tensor]


def momentum(function: Function, z: Tensor, memory: dict[str, Any]) -> Tensor:
    """Heavy-ball momentum."""
    memory["m"] = 0.9 * memory.get("m", 0) + _gradient(function, z)
    return 0.05 * memory["m"]  # type: ignore[no-any-return]


EPS = 1e-3  # far above rounding: where all but one element of a gradient are 0, Adam divides by it


def adam(function: Function, z: Tensor, memory: dict[str, Any], lr: float = 0.05) -> Tensor:
    """Adam."""
    gradient = _gradient(function, z)
    memory["t"] = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * gradient
    memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * gradient**2
    mean = memory["m"] / (1 - 0.9 ** memory["t"])
    root = (memory["v"] / (1 - 0.99 ** memory["t"])).sqrt()
    return lr * mean / (root + EPS)  # type: ignore[no-any-return]


def adam_armijo(function: Function, z: Tensor, memory: dict[str, Any]) -> Tensor:
    """Adam, with steps halved until Armijo's condition holds."""
    step = adam(function, z, memory, lr=2.0)
    slope = float(_gradient(function, z) @ step)
    length, start = 1.0, float(function(z))
    for _ in range(10):
        if float(function(z - length * step)) <= start - 1e-4 * length * slope:
            return length * step
        length /= 2
    return 0 * step


def every_fact(function: Function, z: Tensor, memory: dict[str, Any]) -> Tensor:
    """Mixes the point, the gradient, and loss and gradient at a trial point."""
    gradient = _gradient(function, z)
    trial = z - 0.1 * gradient
    factor = 0.05 * float(function(trial) / (1 + function(z).square()))
    return factor * (0.1 * z + 0.5 * gradient + _gradient(function, trial))


def methods() -> dict[str, tuple[Method, Callable[[], list[Module]]]]:
    """Returns methods by name: the one by hand, and the modules that do the same."""
    return {
        "momentum": (momentum, lambda: [Momentum(), Scale()]),
        "adam": (adam, lambda: [Moments(eps=EPS), Scale()]),
        "adam and a line search": (
            adam_armijo,
            lambda: [Moments(eps=EPS), Scale(2.0), Armijo()],
        ),
        "a mixture of all facts": (every_fact, lambda: [EveryFact()]),
    }


def train_by_hand(
    problem: Problem, projections: Sequence[ProjectionBase], method: Method, count: int
) -> list[Tensor]:
    """Takes steps inside projections, the outermost first; returns where they led."""
    maps: list[Map] = []
    memory: dict[str, Any] = {}
    for _ in range(count):
        loss = problem.closure()
        params = problem.point()
        grads = [p.grad for p in problem.params if p.grad is not None]
        matrix = torch.eye(flat(params).numel(), dtype=torch.float64)
        inner_params, inner_grads, keys = params, grads, list(range(len(params)))
        for i, projection in enumerate(projections):
            if len(maps) == i:
                maps.append(Map(projection, inner_params, keys))
            maps[i].learn(inner_grads, inner_params, inner_grads, loss)
            keys = maps[i].tensor_ids_inside()
            matrix = matrix @ maps[i].matrix()
            inner_params = maps[i].project(inner_params, "params")
            inner_grads = maps[i].project(inner_grads, "grads")
        x, z = flat(params), flat(inner_params)

        def function(
            point: Tensor, x: Tensor = x, z: Tensor = z, matrix: Tensor = matrix
        ) -> Tensor:
            return problem.loss(shaped(x + matrix @ (point - z), problem.params))

        step = method(function, z, memory)
        with torch.no_grad():
            for parameter, tensor in zip(
                problem.params, shaped(x - matrix @ step, problem.params), strict=True
            ):
                parameter.copy_(tensor)
    return problem.point()


def _gradient(function: Function, z: Tensor) -> Tensor:
    leaf = z.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient
