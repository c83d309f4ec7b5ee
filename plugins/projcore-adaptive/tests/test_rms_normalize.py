"""RMSNormalize takes the matrices of one tensor together where that saves launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.modules import LR, RMSNormalize

SHAPES = ((4, 3), (3, 4), (4, 3), (2, 4, 3), (4, 3), (5,), (2, 4, 3))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rms", ["keep", 0.2, None])
@pytest.mark.parametrize("folding", ["fold", "last2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_matrices_of_one_tensor_are_normalized_together(
    dim: int, rms: Any, folding: Any, dtype: torch.dtype, monkeypatch: Any
) -> None:
    """The first module gets separate tensors; its results are slices, which the second gets."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    grads = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    seen: list[int] = []
    root = torch._foreach_sqrt
    monkeypatch.setattr(torch, "_foreach_sqrt", lambda some: seen.append(len(some)) or root(some))
    results = []
    for stacks, lengths in ((False, {7}), (True, {7, 4})):
        for name in ("projcore.ops", "projcore_adaptive.rms_normalize"):
            monkeypatch.setattr(f"{name}.prefers_stacks", lambda tensor, stacks=stacks: stacks)
        seen.clear()
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        modules = [RMSNormalize(0.9, dim, rms, folding=folding) for _ in range(2)]
        optimizer = Optimizer(params, *modules, LR(0.1))
        for _ in range(3):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        assert set(seen) == lengths
        results.append([param.detach() for param in params])
        results[-1] += [value for each in params for value in optimizer.state[each].values()]
    rounding = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(*results, rtol=rounding, atol=rounding)
