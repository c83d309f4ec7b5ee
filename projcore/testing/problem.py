"""The small smooth problems on which the checks run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from projcore.testing.conditions import note_problem

SHAPES = ((4, 3), (5,), (), (3, 4), (2, 3, 2))


class InjectedFault(Exception):
    """Raised on purpose by a check."""


class Problem:
    r"""Parameters, and a smooth function of them that couples all their elements.

    With :math:`x` the elements of all parameters as real numbers in a row, the loss is
    :math:`\frac12 \sum_i a_i (x_i - c_i)^2 + \frac{3}{10} \sum_i \sin(x_i x_{i+1})`, in float64.

    Args:
        tensors: Where the parameters begin.

    Attributes:
        params: The parameters.
        missing: Indices of parameters that the closure gives no gradient.
        calls: How often the closure was called.
        fail_at: The call at which the closure raises.
        closing: Whether the closure is running.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.params = [Parameter(tensor) for tensor in tensors]
        self.missing: frozenset[int] = frozenset()
        self.calls = 0
        self.fail_at: int | None = None
        self.closing = False
        index = torch.arange(sum(flat([p]).numel() for p in self.params), dtype=torch.float64)
        self._curvature = 1 + 0.5 * torch.cos(index)
        self._target = torch.sin(1.7 * index)

    def loss(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the loss at any point, with its graph."""
        x = flat(tensors)
        coupling = torch.sin(x[:-1] * x[1:]).sum()
        return 0.5 * (self._curvature * (x - self._target).square()).sum() + 0.3 * coupling

    def closure(self, backward: bool = True) -> Tensor:
        """Computes the loss at the parameters, and their gradients."""
        self.closing = True
        try:
            self.calls += 1
            if self.calls == self.fail_at:
                raise InjectedFault("in the closure")
            with torch.enable_grad():
                loss = self.loss(self.params)
                if backward:
                    wanted = [p for i, p in enumerate(self.params) if i not in self.missing]
                    grads = iter(torch.autograd.grad(loss, wanted) if wanted else ())
                    for i, parameter in enumerate(self.params):
                        parameter.grad = None if i in self.missing else next(grads)
            return loss.detach()
        finally:
            self.closing = False

    def point(self) -> list[Tensor]:
        """Returns copies of the parameters."""
        return [parameter.detach().clone() for parameter in self.params]


def make_problem(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Returns a problem with parameters of these shapes, drawn from the seed."""
    note_problem(shapes, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    return Problem(torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Returns all elements in one float64 vector; a complex one is two, real and imaginary."""
    parts = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    return torch.cat([part.reshape(-1).double() for part in parts])


def shaped(vector: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Undoes `flat`: returns tensors of the shapes and dtypes of `like`."""
    result, start = [], 0
    for tensor in like:
        shape = (*tensor.shape, 2) if tensor.is_complex() else tensor.shape
        count = tensor.numel() * (2 if tensor.is_complex() else 1)
        part = vector[start : start + count].reshape(shape)
        part = torch.view_as_complex(part.clone()) if tensor.is_complex() else part
        result.append(part.to(tensor.dtype))
        start += count
    return result
