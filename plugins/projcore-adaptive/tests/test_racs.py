"""RACS: what its factors are, whatever the size of gradients, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, RACS, RMSNormalize
from projcore_adaptive.racs import rank_one_factors


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def stepped(tensor: Tensor, *modules: RACS | RMSNormalize, steps: int = 1) -> Tensor:
    """What becomes of a gradient: the update of the last step."""
    weight = torch.zeros_like(tensor).requires_grad_()
    optimizer = Optimizer([weight], *modules, LR(1.0))
    for _ in range(steps):
        weight.detach().zero_()
        weight.grad = tensor
        optimizer.step()
    return -weight.detach()


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 5, 2)], ids=str)
def test_the_product_of_the_factors_is_the_nearest_of_rank_1(shape: tuple[int, ...]) -> None:
    squares = draw(*shape).square()
    q, s = rank_one_factors(squares, 200)
    u, values, vh = torch.linalg.svd(squares)
    nearest = values[..., :1, None] * u[..., :, :1] * vh[..., :1, :]
    torch.testing.assert_close(q * s, nearest, rtol=1e-12, atol=1e-12)
    errors = [
        float((a * b - nearest).norm()) for a, b in (rank_one_factors(squares, n) for n in (1, 5))
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("size", [1e-16, 1e-4, 1e4, 1e16])
def test_the_size_of_a_gradient_does_not_matter(size: float) -> None:
    gradient = draw(4, 6).float()
    torch.testing.assert_close(stepped(size * gradient, RACS()), stepped(gradient, RACS()))


def test_of_rank_1_all_elements_become_1() -> None:
    gradient = torch.outer(draw(4), draw(6))
    torch.testing.assert_close(stepped(gradient, RACS(0.0)), gradient.sign(), rtol=1e-12, atol=0)
    longer = gradient.sign() / (1 - 0.9**3)  # the means begin at zero
    torch.testing.assert_close(stepped(gradient, RACS(0.9), steps=3), longer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("module", [RACS(), RMSNormalize(), RMSNormalize(eps=0.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_zeros_stay_zeros(module: RACS | RMSNormalize, dtype: torch.dtype) -> None:
    gradient = draw(4, 6).to(dtype)
    gradient[:, 2] = gradient[1] = 0
    update = stepped(gradient, module, steps=2)
    assert update.isfinite().all()
    assert not update[:, 2].any()
    assert not update[1].any()
    assert update.count_nonzero() == 15
    assert not stepped(torch.zeros_like(gradient), module).any()


@pytest.mark.parametrize("module", [RACS, RMSNormalize])
def test_a_stack_is_as_many_matrices(module: type[RACS] | type[RMSNormalize]) -> None:
    stack = draw(2, 3, 4, 5)
    made = stepped(stack, module(folding="last2"), steps=2)
    single = [stepped(each, module(), steps=2) for each in stack.flatten(0, 1)]
    torch.testing.assert_close(made, torch.stack(single).reshape(stack.shape), rtol=1e-12, atol=0)
    folded = stepped(stack, module(), steps=2)
    flat = stepped(stack.flatten(1), module(), steps=2)
    torch.testing.assert_close(folded, flat.reshape(stack.shape), rtol=0, atol=0)


def test_what_it_keeps() -> None:
    weight = torch.zeros(30, 20, requires_grad=True)
    optimizer = Optimizer([weight], RACS(), LR(0.1))
    weight.grad = draw(30, 20).float()
    optimizer.step()
    assert optimizer.memory().state == 4 * (30 + 20)


def test_bad_arguments() -> None:
    weight = torch.zeros(2, 2, requires_grad=True)
    for module in (lambda: RACS(1.0), lambda: RACS(folding="rows"), lambda: RACS(iterations=0)):  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="RACS"):
            Optimizer([weight], module(), LR(0.1))
    with pytest.raises(ArgumentTypeError, match="iterations"):
        RACS(iterations=2.0)  # type: ignore[arg-type]
    for other in (
        lambda: RMSNormalize(dim=2),
        lambda: RMSNormalize(rms="lose"),
        lambda: RMSNormalize(rms=0.0),
    ):  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="RMSNormalize"):
            other()
    complex_weight = torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)
    for each in (RACS(), RMSNormalize()):
        with pytest.raises(ArgumentError, match="ViewAsReal"):
            Optimizer([complex_weight], each, LR(0.1))
