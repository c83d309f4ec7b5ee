"""Hyperball against its formula; norms stay, whatever comes before, in all dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.modules import LR, Adam, Hyperball, TrustRatio
from projcore.testing.parts import Stack


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(8)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def test_200_steps_of_the_formula() -> None:
    weight = draw(4, 3).requires_grad_()
    expected, radius = weight.detach().clone(), weight.detach().norm()
    optimizer = Optimizer([weight], Adam(), TrustRatio(), LR(0.02), Hyperball())
    oracle = draw(4, 3).requires_grad_()
    adam = torch.optim.Adam([oracle], lr=1.0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = lr = 0.02 if step < 100 else 0.005
        gradient = (weight.detach() + step).sin()
        weight.grad = oracle.grad = gradient
        before = oracle.detach().clone()
        adam.step()
        direction = before - oracle.detach()  # Adam's, which does not depend on where it stands
        ahead = expected - lr * radius * direction / direction.norm()
        expected = radius * ahead / ahead.norm()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4), (torch.complex64, 1e-6)],
    ids=str,
)
def test_the_norm_stays(dtype: torch.dtype, tolerance: float) -> None:
    """To what the dtype can tell apart, after as many steps as would let it drift."""
    weight = draw(20, 10, dtype=dtype).requires_grad_()
    wide = torch.complex128 if dtype.is_complex else torch.float64
    radius = weight.detach().to(wide).norm()
    optimizer = Optimizer([weight], LR(0.5), Hyperball())
    for step in range(100):
        weight.grad = (weight.detach().to(wide) + step).sin().to(dtype)
        optimizer.step()
    torch.testing.assert_close(weight.detach().to(wide).norm(), radius, rtol=tolerance, atol=0)


def test_of_a_parameter_at_zero_the_update_stays() -> None:
    zero, one = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = Optimizer([zero, one], LR(0.1), Hyperball())
    for _ in range(2):
        zero.grad = one.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
    torch.testing.assert_close(zero.detach(), -0.2 * torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(one.detach().norm(), torch.tensor(3.0).sqrt())


def test_a_point_set_from_outside_comes_back() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    optimizer = Optimizer([weight], LR(0.1), Hyperball())
    weight.grad = torch.ones(2)
    optimizer.step()
    weight.detach().mul_(7)
    optimizer.step()
    torch.testing.assert_close(weight.detach().norm(), torch.tensor(5.0))


@pytest.mark.parametrize("shape", [(), (5,), (4, 3)], ids=str)
def test_a_batch_is_as_many_tensors(shape: tuple[int, ...]) -> None:
    starts = list(draw(3, *shape))
    ends = []
    for modules in ([Stack([LR(0.1), Hyperball()])], [LR(0.1), Hyperball()]):
        weights = [start.clone().requires_grad_() for start in starts]
        optimizer = Optimizer(weights, *modules)
        for _ in range(3):
            for weight in weights:
                weight.grad = weight.detach().cos()
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
