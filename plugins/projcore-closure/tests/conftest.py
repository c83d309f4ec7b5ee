"""A smooth function of several parameters, whose closure counts its calls and may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

SHAPES = ((4, 3), (), (5,), (0,), (2, 1, 3))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.reshape(-1).double() for t in reals])


class Problem:
    r"""Minimises :math:`\frac12 x^\top A x - b^\top x + \sum_i \log\cosh(x_i x_{i+1})`."""

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

    def loss(self, tensors: Iterable[Tensor]) -> Tensor:
        x = flat(tensors)
        quadratic = 0.5 * x @ self.hessian @ x - self.target @ x
        return self.sign * (quadratic + torch.log(torch.cosh(x[1:] * x[:-1])).sum())

    def closure(self, backward: bool = True) -> Tensor:
        self.calls += 1
        self.backwards.append(backward)
        if self.calls == self.fail_at:
            raise self.error("injected")
        if not backward:
            with torch.no_grad():
                return self.loss(self.params)
        for parameter in self.params:
            parameter.grad = None
        loss = self.loss(self.params)
        loss.backward()
        for parameter in self.params:
            if not parameter.requires_grad:
                parameter.grad = None
        return loss.detach()

    def plain_closure(self) -> Tensor:
        """Does not know the keyword ``backward``."""
        return self.closure()

    def point(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.params]


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
