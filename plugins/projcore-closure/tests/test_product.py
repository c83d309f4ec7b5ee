from __future__ import annotations

import pytest
import torch

from projcore_closure._product import dot, peaks


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-15),
        (torch.float32, 1e-7),
        (torch.bfloat16, 1e-7),
        (torch.float16, 1e-7),
        (torch.complex64, 1e-7),
        (torch.complex128, 1e-15),
    ],
)
def test_dot_is_as_exact_as_float32_or_the_dtype(dtype, tolerance):
    torch.manual_seed(0)
    ones, others = (
        [torch.randn(shape, dtype=dtype) for shape in ((50, 40), (), (0,), (7,))] for _ in range(2)
    )
    ones[0], others[0] = ones[0].t(), others[0].t().contiguous().conj()
    wide = torch.complex128
    products = [(x.to(wide).conj() * y.to(wide)).real for x, y in zip(ones, others, strict=True)]
    exact = sum(float(product.sum()) for product in products)
    size = sum(float(product.abs().sum()) for product in products)
    assert abs(dot(ones, others) - exact) < tolerance * size
    assert dot([], []) == 0.0


def test_peaks():
    tensors = [
        torch.tensor([[1.0, -3.0]]),
        torch.tensor(3 + 4j),
        torch.zeros(0),
        torch.tensor(-2.0),
    ]
    assert peaks(tensors) == [3.0, 5.0, 0.0, 2.0]
    assert peaks([]) == []
