"""The common base of the transforms: batches of equal shapes, dtypes, dimensions, `keep`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from projcore import ProjectionBase, Settings, require
from projcore.errors import ArgumentError, ArgumentTypeError

# The largest number of elements in a stack on a CPU, which with its temporaries fits the cache: for
# 100 tensors of 256 x 256 at once, a transform takes twice as long.
STACK = 1 << 18


class Spectral(ProjectionBase):
    """Transforms tensors along some dimensions, those of equal shape in one call.

    A transform defines `forward` and `backward`, for a stack of real tensors, and `lengths` if it
    changes them. `keep` takes the first coefficients of each dimension, unless the transform
    overrides `select` and `embed`.
    """

    scope = "tensor"
    splits_complex = True  # a real transform is applied to real and imaginary parts separately

    def __init__(
        self,
        modules: Any,
        dims: Sequence[int] | None,
        keep: float | None,
        project_update: bool,
        project_params: bool,
        project_grad: bool,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)
        self.dims = _as_dims(self, dims)
        self.keep = keep
        if isinstance(keep, int):
            require(self, "keep", keep, minimum=1)
        elif keep is not None:
            require(self, "keep", keep, above=0, maximum=1)

    @abstractmethod
    def forward(self, x: Tensor, dims: tuple[int, ...], extra: Sequence[Any]) -> Tensor:
        """Transforms a stack of tensors along dimensions; ``extra`` is the result of `gather`."""

    @abstractmethod
    def backward(
        self, z: Tensor, dims: tuple[int, ...], lengths: tuple[int, ...], extra: Sequence[Any]
    ) -> Tensor:
        """Undoes `forward`, to the original lengths along the dimensions."""

    def gather(self, states: list[Any]) -> Sequence[Any]:
        """Returns the entries of the tensors' state that the transform of a stack needs."""
        return ()

    def lengths(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the lengths of dimensions after `forward`, before `select`."""
        return lengths

    def select(self, z: Tensor, dims: tuple[int, ...], kept: tuple[int, ...]) -> Tensor:
        """Returns the coefficients to keep, `kept` along each dimension."""
        for dim, count in zip(dims, kept, strict=True):
            z = z.narrow(dim, 0, count)
        return z.contiguous()

    def embed(self, z: Tensor, dims: tuple[int, ...], lengths: tuple[int, ...]) -> Tensor:
        """Undoes `select`, with zeros for the other coefficients."""
        missing = [0] * z.ndim
        for dim, length in zip(dims, lengths, strict=True):
            missing[dim] = length - z.shape[dim]
        return pad(z, [count for each in reversed(missing) for count in (0, each)])

    # The crossing of tensors.

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return self.dims is None or all(-tensor.ndim <= d < tensor.ndim for d in self.dims)

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Any],
        settings: list[Settings],
        current: str,
    ) -> list[Tensor]:
        def down(x: Tensor, shape: torch.Size, chosen: list[Any]) -> Tensor:
            dims, lengths = self._dims_of(shape)
            inside = self.lengths(lengths)
            kept = tuple(self._kept(length) for length in inside)
            if x.numel() == 0:
                return x.new_zeros(_resized(x.shape, dims, kept))
            z = self.forward(x, dims, self.gather(chosen))
            return z if kept == inside else self.select(z, dims, kept)

        return self._in_stacks(tensors, tensors, states, down)

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Any],
        settings: list[Settings],
        current: str,
    ) -> list[Tensor]:
        def up(z: Tensor, shape: torch.Size, chosen: list[Any]) -> Tensor:
            dims, lengths = self._dims_of(shape)
            inside = self.lengths(lengths)
            if z.numel() == 0:
                return z.new_zeros((z.shape[0], *shape))
            if tuple(z.shape[dim] for dim in dims) != inside:
                z = self.embed(z, dims, inside)
            return self.backward(z, dims, lengths, self.gather(chosen))

        return self._in_stacks(list(projected_tensors), params, states, up)

    def _dims_of(self, shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the dimensions to transform, as those of a stack, and their lengths."""
        count = len(shape)
        chosen = range(count) if self.dims is None else sorted({d % count for d in self.dims})
        return tuple(d + 1 for d in chosen), tuple(shape[d] for d in chosen)

    def _kept(self, length: int) -> int:
        if self.keep is None or length == 0:
            return length
        if isinstance(self.keep, int):
            return min(self.keep, length)
        return max(1, round(self.keep * length))

    def _in_stacks(
        self,
        tensors: list[Tensor],
        like: list[Tensor],
        states: list[Any],
        function: Callable[[Tensor, torch.Size, list[Any]], Tensor],
    ) -> list[Tensor]:
        """Applies a function to stacks of tensors of equal shape and dtype, in float32 or wider."""
        result: list[Tensor] = list(tensors)
        for places in _stacks(tensors, like):
            chosen = [tensors[i] for i in places]
            stack = chosen[0][None] if len(chosen) == 1 else torch.stack(chosen)
            memory = [states[i] for i in places]
            shape = like[places[0]].shape
            if stack.is_complex() and self.splits_complex:
                parts = torch.view_as_real(stack.resolve_conj()).movedim(-1, 0)
                made = function(parts.flatten(0, 1), shape, memory * 2)
                stack = torch.complex(*made.chunk(2))
            elif stack.dtype in (torch.bfloat16, torch.float16):
                stack = function(stack.float(), shape, memory).to(stack.dtype)
            else:
                stack = function(stack, shape, memory)
            for i, tensor in zip(places, stack.unbind(), strict=True):
                result[i] = tensor
        return result


def along(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Multiplies by a matrix along a dimension of `x`."""
    if dim == x.ndim - 1:
        return x @ matrix.t()
    shape = x.shape
    made: Tensor = (matrix @ x.flatten(dim + 1)).unflatten(-1, shape[dim + 1 :])
    return made


def _as_dims(owner: object, dims: Sequence[int] | None) -> tuple[int, ...] | None:
    if dims is None:
        return None
    found = dims if isinstance(dims, (list, tuple)) else (dims,)
    if not found or not all(isinstance(d, int) and not isinstance(d, bool) for d in found):
        who = type(owner).__name__
        raise ArgumentTypeError(
            f"{who}(dims={dims!r}) is not valid. It takes a tuple of integers, such as (-2, -1), "
            "or None for all dimensions."
        )
    if len(set(found)) < len(found):
        raise ArgumentError(
            f"{type(owner).__name__}(dims={dims!r}) contains a dimension twice. Each is "
            "transformed once. Remove one."
        )
    return tuple(found)


def _stacks(tensors: list[Tensor], like: list[Tensor]) -> Iterator[list[int]]:
    """Yields the indices of the tensors of each stack."""
    groups: dict[Any, list[int]] = {}
    for i, (tensor, outside) in enumerate(zip(tensors, like, strict=True)):
        key = (outside.shape, tensor.shape, tensor.dtype, tensor.device)
        groups.setdefault(key, []).append(i)
    for places in groups.values():
        first = tensors[places[0]]
        size = len(places)
        if first.device.type == "cpu":
            size = max(1, STACK // max(1, first.numel()))
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _resized(
    shape: Sequence[int], dims: tuple[int, ...], lengths: tuple[int, ...]
) -> tuple[int, ...]:
    result = list(shape)
    for dim, length in zip(dims, lengths, strict=True):
        result[dim] = length
    return tuple(result)
