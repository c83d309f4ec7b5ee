"""What to draw in tests with hypothesis, which is installed apart: ``pip install hypothesis``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "projcore.testing.strategies needs hypothesis, which cannot be imported. "
        "Install it: pip install hypothesis"
    ) from error

__all__ = ["tensor_lists"]

LENGTHS = (1, 2, 3, 5, 7, 11, 13)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
PRIME = 251  # so many numbers, and halves between them, are exact in bfloat16


@st.composite
def tensor_lists(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    one_dtype: bool = False,
    max_tensors: int = 4,
    max_dims: int = 5,
    max_elements: int = 400,
    empty: bool = True,
) -> list[Tensor]:
    """Draws lists of tensors as awkward as those that an optimizer may be given.

    They have from 0 to 5 dimensions; lengths are 0, 1 or prime; a shape may come several times. In
    memory they are contiguous, transposed, every second element of something larger, expanded
    (their elements share memory: fit for gradients, and not to be written into) or
    ``channels_last``. Values are whole numbers and halves, which all dtypes hold exactly. What
    fails shrinks to few and short tensors, contiguous, of zeros.

    Args:
        draw: Handed in by hypothesis.
        dtypes: What to choose from; name ``torch.complex64`` where complex tensors are to work.
        one_dtype: Whether all tensors of a list have the same.
        max_tensors: The longest list; the shortest has one tensor.
        max_dims: The most dimensions.
        max_elements: The most elements of a tensor.
        empty: Whether there are tensors without elements.

    Example:
        >>> from hypothesis import given, settings
        >>> from projcore import build
        >>> vector = build("vector([sign()])")
        >>> @settings(max_examples=20, deadline=None)
        ... @given(tensor_lists(one_dtype=True))
        ... def test_a_vector_is_as_long_as_all_tensors(tensors):
        ...     none = [{} for _ in tensors]
        ...     (merged,) = vector.project(tensors, tensors, None, None, none, none, "grads")
        ...     assert merged.numel() == sum(tensor.numel() for tensor in tensors)
        >>> test_a_vector_is_as_long_as_all_tensors()
    """
    lengths = st.sampled_from((*LENGTHS, 0) if empty else LENGTHS)
    choice = st.sampled_from(list(dtypes))
    common = draw(choice)
    shapes: list[tuple[int, ...]] = []
    tensors = []
    for _ in range(draw(st.integers(1, max_tensors))):
        if len(shapes) > 0 and draw(st.booleans()):
            shape = draw(st.sampled_from(shapes))
        else:
            shape = _capped(draw(st.lists(lengths, max_size=max_dims)), max_elements)
        shapes.append(shape)
        dtype = common if one_dtype else draw(choice)
        layout = draw(st.sampled_from(_layouts(shape)))
        tensors.append(layout(_values(shape, dtype, draw(st.integers(0, PRIME - 1)))))
    return tensors


def _capped(lengths: list[int], max_elements: int) -> tuple[int, ...]:
    """Returns a shape: ones in place of the first lengths, as long as there are too many."""
    for i in range(len(lengths)):
        if math.prod(lengths) > max_elements:
            lengths[i] = 1
    return tuple(lengths)


def _values(shape: tuple[int, ...], dtype: torch.dtype, factor: int) -> Tensor:
    """Returns a contiguous tensor: zeros for the factor 0, else as different as can be."""
    count = torch.arange(1, math.prod(shape) + 1)
    values = _signed(factor * count)
    if dtype.is_complex:
        values = torch.complex(values, _signed(2 * factor * count + factor))
    return values.to(dtype).reshape(shape)


def _signed(whole: Tensor) -> Tensor:
    rest = whole % PRIME
    return torch.where(rest > PRIME // 2, rest - PRIME, rest).double() / 2


def _layouts(shape: tuple[int, ...]) -> list[Callable[[Tensor], Tensor]]:
    """Returns the ways to lay out a tensor of that shape in memory, the plainest first."""
    layouts: list[Callable[[Tensor], Tensor]] = [_contiguous]
    if len(shape) >= 1:
        layouts += [_every_second, _expanded]
    if len(shape) >= 2:
        layouts.append(_transposed)
    if len(shape) in (4, 5):
        layouts.append(_channels_last)
    return layouts


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor


def _every_second(tensor: Tensor) -> Tensor:
    return torch.stack([-tensor, tensor], dim=-1)[..., 1]


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def _channels_last(tensor: Tensor) -> Tensor:
    memory = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
    return tensor.contiguous(memory_format=memory)
