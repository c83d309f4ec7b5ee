"""Adam by torch's fused kernel: when it may be used, and that it is Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore_adaptive import _fused, adam
from projcore_adaptive.adam import adam_update


def test_the_fused_kernel_is_not_given_other_shapes() -> None:
    assert not _fused.can_fuse(torch.zeros(3, 4), torch.zeros(2, 4))
    assert not _fused.can_fuse(torch.zeros(3, 4), torch.zeros(4, 3).mT)
    assert _fused.can_fuse(torch.zeros(3, 4), torch.zeros(3, 4))
    assert not _fused.can_fuse(torch.zeros(3, dtype=torch.bfloat16))
    assert not _fused.can_fuse(torch.zeros(3), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("mode", ["corrected", "hat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_the_operations_one_by_one_give(
    dtype: torch.dtype, mode: Any, correct: bool, monkeypatch: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,), (), (64,)]
    results = []
    for fused in (True, False):
        monkeypatch.setattr(adam, "can_fuse", (lambda *_: True) if fused else (lambda *_: False))
        generator.manual_seed(0)
        first = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        second = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        steps = [torch.tensor(count) for count in (0, 0, 3, 0)]  # one is ahead of the others
        for _ in range(5):
            tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
            before = [tensor.clone() for tensor in tensors]
            made = adam_update(tensors, first, second, None, steps, 0.9, 0.99, 1e-3, mode, correct)
            assert all(map(torch.equal, tensors, before))
        results.append([*made, *first, *second])
        assert [int(step) for step in steps] == [5, 5, 8, 5]
    tolerance = 1e-6 if dtype is torch.float32 else 1e-14
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_a_tensor_does_not_depend_on_its_companions() -> None:
    """One of strides, or of another dtype, goes another way; the others do not follow it."""

    def step(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        memory = [[torch.zeros_like(each) for each in tensors] for _ in range(2)]
        steps = [torch.tensor(0) for _ in tensors]
        return adam_update(tensors, *memory, None, steps, 0.9, 0.99, 1e-8)

    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(37, generator=generator)
    others = [
        torch.randn(5, 3, generator=generator).mT,
        torch.randn(4, generator=generator, dtype=torch.float64),
        torch.randn(4, generator=generator).bfloat16(),
    ]
    alone = step([plain])[0]
    for count in range(1, 4):
        assert torch.equal(step([*others[:count], plain])[-1], alone)
