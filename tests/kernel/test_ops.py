"""Helpers of plugins on lists of tensors."""

from __future__ import annotations

import pytest
import torch

from projcore.ops import at_once, clamp_min_, copy_, empty_like, stack


@pytest.mark.parametrize("shapes", [[(), (), ()], [(2, 1), (2, 1)], [(2, 1, 1), (0, 1), (3,)]])
def test_at_once_is_one_by_one(shapes: list[tuple[int, ...]]) -> None:
    ones = [torch.rand(shape) for shape in shapes]
    others = [torch.rand(shape) for shape in shapes]
    expected = [above / below for above, below in zip(ones, others, strict=True)]
    torch.testing.assert_close(at_once(torch.div, ones, others), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "bound", [0.5, [0.5, 2.0], torch.tensor(0.5), [torch.tensor(0.5), torch.tensor(2.0)]]
)
def test_clamp_takes_numbers_and_tensors(bound: object) -> None:
    """One for all, or one for each; NaN stays."""
    tensors = [torch.tensor([0.1, torch.nan, 1.0]), torch.tensor([1.0, 3.0])]
    clamp_min_(tensors, bound)
    low = 2.0 if isinstance(bound, list) else 1.0
    expected = [torch.tensor([0.5, torch.nan, 1.0]), torch.tensor([low, 3.0])]
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0, equal_nan=True)


def test_copy_writes_in_place() -> None:
    targets = [torch.zeros(2), torch.zeros(3, dtype=torch.float64)]
    before = [target.data_ptr() for target in targets]
    copy_(targets, [torch.ones(2), torch.full((3,), 2.0)])
    assert [target.data_ptr() for target in targets] == before
    assert targets[0].tolist() == [1.0, 1.0]
    assert targets[1].tolist() == [2.0, 2.0, 2.0]


def test_a_stack_is_a_view_of_slices_in_order_only() -> None:
    whole = torch.arange(24.0).view(4, 3, 2)
    slices = list(whole.unbind())
    for some, is_view in (
        (slices, True),
        (slices[1:3], True),
        (slices[::-1], False),
        (slices[::2], False),
        ([each.mT for each in slices], False),
        ([slices[0], slices[1].clone()], False),
    ):
        stacked = stack(some)
        torch.testing.assert_close(stacked, torch.stack(some), rtol=0, atol=0)
        assert (stacked.untyped_storage().data_ptr() == whole.data_ptr()) is is_view


def test_empty_tensors_for_slices_are_slices() -> None:
    slices, other = torch.ones(3, 4, 2).unbind(), torch.ones(4, 2)
    one, alone, *others = empty_like([slices[0], other, *slices[1:]])
    assert stack([one, *others]).data_ptr() == one.data_ptr()
    assert alone.untyped_storage().nbytes() == alone.nbytes
    assert {each.shape for each in (one, alone, *others)} == {other.shape}
