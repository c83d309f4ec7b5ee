"""A smooth function of several parameters, whose closure counts its calls; a lossy projection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import ProjectionBase

SHAPES = ((4, 3), (), (5,), (0,), (2, 1, 3))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.reshape(-1).double() for t in reals])


class Problem:
    r"""Minimises :math:`\frac12 x^\top A x - b^\top x + c \sum_i \log\cosh(x_i x_{i+1})`.

    `A` has eigenvalues of at least 0.1; with a `coupling` :math:`c` of 0 it is a convex quadratic.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.params = [Parameter(tensor.clone()) for tensor in tensors]
        generator = torch.Generator().manual_seed(0)
        size = flat(tensors).numel()
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.hessian = root @ root.T / size + torch.diag(torch.linspace(0.1, 2, size).double())
        self.target = torch.randn(size, generator=generator, dtype=torch.float64)
        self.calls = 0
        self.backwards: list[bool] = []
        self.fail_at: int | None = None
        self.error: type[BaseException] = RuntimeError
        self.sign = 1.0
        self.coupling = 1.0
        self.without: set[int] = set()  # parameters that get no gradient, though they require one
        self.seen: Callable[[list[Tensor]], None] = lambda point: None

    def loss(self, tensors: Iterable[Tensor]) -> Tensor:
        x = flat(tensors)
        quadratic = 0.5 * x @ self.hessian @ x - self.target @ x
        coupling = torch.log(torch.cosh(x[1:] * x[:-1])).sum()
        return self.sign * (quadratic + self.coupling * coupling)

    def derivatives(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the gradient and the Hessian at a point, of all its real numbers in a row."""

        x = flat(tensors).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss([x]), x)
        hessian = torch.autograd.functional.hessian(lambda y: self.loss([y]), x.detach())
        return gradient, hessian

    def leave_out(self, index: int, how: str) -> None:
        """Freezes a parameter, or has it get no gradient."""
        if how == "frozen":
            self.params[index].requires_grad_(False)
        else:
            self.without.add(index)

    def closure(self, backward: bool = True) -> Tensor:
        self.calls += 1
        self.backwards.append(backward)
        self.seen(self.point())
        if self.calls == self.fail_at:
            raise self.error("injected")
        if not backward:
            with torch.no_grad():
                return self.loss(self.params)
        for parameter in self.params:
            parameter.grad = None
        loss = self.loss(self.params)
        loss.backward()
        for i in self.without:
            self.params[i].grad = None
        for parameter in self.params:
            if not parameter.requires_grad:
                parameter.grad = None
        return loss.detach()

    def plain_closure(self) -> Tensor:
        """Does not know the keyword ``backward``."""
        return self.closure()

    def point(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.params]


class Linear(ProjectionBase):
    """A fixed linear map that is not orthonormal, of each tensor or of all of them together."""

    def __init__(self, modules: Any, rank: int, scope: str) -> None:
        super().__init__(modules, project_params=True, project_grad=True)
        self.rank, self.scope = rank, scope

    def matrices(self, sizes: list[int]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.rank)
        draws = [
            torch.randn(n, min(self.rank, n), dtype=torch.float64, generator=generator)
            for n in sizes
        ]
        return [draw @ torch.diag(torch.linspace(0.5, 2, draw.shape[1]).double()) for draw in draws]

    def vectors(self, tensors):
        parts = [tensor.reshape(-1) for tensor in tensors]
        return [torch.cat(parts)] if self.scope == "all" else parts

    def project(self, tensors, params, grads, loss, states, settings, current):
        vectors = self.vectors(tensors)
        if vectors[0].is_meta:
            return [v.new_empty(min(self.rank, v.numel())) for v in vectors]
        matrices = self.matrices([v.numel() for v in vectors])
        if current == "params":
            return [torch.linalg.pinv(m) @ v for m, v in zip(matrices, vectors, strict=True)]
        return [m.T @ v for m, v in zip(matrices, vectors, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        vectors = list(projected_tensors)
        matrices = self.matrices([v.numel() for v in self.vectors(params)])
        full = [m @ z for m, z in zip(matrices, vectors, strict=True)]
        if self.scope == "all":
            full = list(full[0].split([p.numel() for p in params]))
        return [v.reshape(p.shape) for v, p in zip(full, params, strict=True)]

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the map as one matrix, onto all the elements of `tensors` in a row."""
        matrices = self.matrices([v.numel() for v in self.vectors(tensors)])
        return torch.block_diag(*matrices)


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


@pytest.fixture
def make() -> Callable[..., Problem]:
    """Returns a function that makes a problem, always the same for the same arguments."""

    def made(
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        dtype: torch.dtype = torch.float64,
        tensors: Sequence[Tensor] | None = None,
    ) -> Problem:
        generator = torch.Generator().manual_seed(1)
        if tensors is None:
            drawn = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
            tensors = [tensor.to(dtype) for tensor in drawn]
        return Problem(tensors)

    return made
