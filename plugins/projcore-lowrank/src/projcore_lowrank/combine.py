"""The second choice of a subspace: how the update combines the subspace and the residual."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from projcore import Choice, Entries, Settings, require
from projcore.errors import ContractError
from projcore.ops import wide
from projcore_lowrank._batches import Batch

TINY = 1e-8  # added to denominators, as in the authors' code


class Terms(NamedTuple):
    """An update: ``scale * U low + full * factor + signs * sign(full - U projected)``.

    Terms of None or 0 are omitted. So the residual need not be formed.
    """

    low: Tensor | None = None
    scale: float = 1.0
    factor: Tensor | float | None = None
    signs: float = 0.0


@dataclass(frozen=True)
class Given:
    r"""The inputs of a rule: matrices :math:`G`, or stacks, of one dtype and device.

    Attributes:
        batches: The tensors of each batch.
        projected: :math:`R = U^H G` of each batch.
        results: :math:`N`, the outputs of the modules inside for all tensors of the step.
        outside: The result of `Combine.measure` for each batch; empty if the rule has none.
        shapes: The shapes of :math:`G`.
        dims: The dimension along which channels lie: -2 if compressed from the left, where each
            column is a channel.
        settings: The settings of all tensors of the step.
        states: The states of all tensors of the step.
    """

    batches: Sequence[Batch]
    projected: list[Tensor]
    results: Sequence[Tensor]
    outside: list[Tensor]
    shapes: list[torch.Size]
    dims: list[int]
    settings: Sequence[Settings]
    states: Sequence[Entries]

    @property
    def members(self) -> list[int]:
        """The tensors of all batches."""
        return [i for batch in self.batches for i in batch.places]

    @property
    def result(self) -> list[Tensor]:
        """:math:`N` of each batch, stacked likewise."""
        return [batch.gather(self.results) for batch in self.batches]

    def setting(self, name: str) -> list[Any]:
        """Returns a setting of each batch, whose tensors share it."""
        return [self.settings[batch.places[0]][name] for batch in self.batches]


class Combine(Choice):
    r"""Computes the update from the full one, :math:`G`, from :math:`R`, and the result inside.

    Override `terms`, and `measure` if the update depends on the full matrices.

    Args:
        scale: :math:`\alpha`, a factor of the update, above 0. A setting.

    Attributes:
        stacked: Whether it supports stacks of matrices of equal shapes.
        orthonormal: Whether it requires orthonormal columns.
        by_channel: Whether it scales the rows or columns of a matrix.
        measures: Whether it depends on what `measure` returns.
    """

    host = ("subspace", "combine")
    stacked: ClassVar[bool] = False
    orthonormal: ClassVar[bool] = False
    by_channel: ClassVar[bool] = False
    measures: bool = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__({"scale": scale})

    def check(self, owner: object, settings: Settings) -> None:
        require(owner, "scale", settings["scale"], above=0)
        if "residual_scale" in settings:
            require(owner, "residual_scale", settings["residual_scale"], minimum=0)

    def init(self, shape: tuple[int, ...], dim: int, tensor: Tensor) -> Entries:
        """Returns the entries of a tensor's state.

        ``shape`` is that of the tensor as a matrix, in which channels lie along ``dim``.
        """
        return {}

    def measure(self, matrix: Tensor, dim: int) -> Tensor:
        """Returns a statistic of a matrix, or of a stack, before it is projected."""
        raise ContractError(
            f"{type(self).__name__} declares measures = True, but does not override measure. "
            "Override it."
        )

    @abstractmethod
    def terms(self, given: Given) -> list[Terms]:
        """Returns the terms of the update of each batch."""


class Limited(Combine):
    r"""A rule that scales the full update, and limits the growth of its norm.

    .. math:: S_t \leftarrow S_t \min\left(1, \gamma \frac{\lVert S_{t-1} \rVert}{\lVert S_t
        \rVert}\right)

    A previous norm of zero does not limit: otherwise all later updates would be zero, too.
    """

    kinds = {"limited_norm": "scalar"}
    stacked = True

    def __init__(self, scale: float = 1.0, limit: float | None = 1.01) -> None:
        if limit is not None:
            require(self, "limit", limit, minimum=1)
        self.limit = limit
        super().__init__(scale)

    def init(self, shape: tuple[int, ...], dim: int, tensor: Tensor) -> Entries:
        if self.limit is None:
            return {}
        dtype = torch.promote_types(tensor.dtype, torch.float32).to_real()
        return {"limited_norm": tensor.new_zeros((*shape[:-2], 1, 1), dtype=dtype)}

    def measure(self, matrix: Tensor, dim: int) -> Tensor:
        return self.norms([matrix], [dim])[0]

    def norms(self, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
        """Returns the norms of channels, which lie along dimensions, or else of matrices.

        The dimensions are kept with length 1; in float32 or wider.
        """
        pairs = zip(map(wide, tensors), dims, strict=True)
        return [_norm(each, dim if self.by_channel else (-2, -1)) for each, dim in pairs]

    def limited(self, factors: list[Tensor], sizes: list[Tensor], given: Given) -> list[Tensor]:
        """Returns factors of channels, multiplied so that norms grow by at most the limit.

        ``sizes`` are the norms of channels times their factors. The norms of matrices are stored.
        """
        if self.limit is None:
            return factors
        now = matrix_norms(sizes)
        previous = [given.states[i]["limited_norm"] for i in given.members]
        before = torch.cat([norm.view(-1) for norm in previous])
        allowed = functional.threshold(before, 0.0, math.inf).add_(TINY).mul_(self.limit)
        shrink = (allowed / now).clamp_(max=1.0)
        left = torch._foreach_mul(split_like(now, previous), split_like(shrink, previous))
        for i, norm in zip(given.members, left, strict=True):
            given.states[i]["limited_norm"] = norm  # each with separate memory
        return list(torch._foreach_mul(factors, split_like(shrink, factors)))


def with_residuals(
    given: Given, inside: list[Tensor], outside: list[Tensor], scales: list[Any]
) -> list[Terms]:
    r"""Returns the result inside and the residual, with factors of channels for both of its parts.

    .. math:: \alpha P (N - R \operatorname{diag}(a)) + G \operatorname{diag}(b)

    ``inside`` is :math:`a`, ``outside`` is :math:`b`, and ``scales`` are :math:`\alpha`.
    """
    result = given.result
    inside, outside = in_dtype_of(inside, result), in_dtype_of(outside, result)
    mixed = torch._foreach_addcmul(result, given.projected, inside, value=-1.0)
    low = [each.to(out.dtype) for each, out in zip(mixed, result, strict=True)]
    return [Terms(*each) for each in zip(low, scales, outside, strict=True)]


def has_signs(terms: Terms) -> bool:
    """Whether to add the signs of the residual; true for a tensor, whose value is unknown."""
    return isinstance(terms.signs, Tensor) or bool(terms.signs)


def is_factor(factor: float | Tensor) -> bool:
    """Whether a factor differs from 1; true for a tensor, whose value is unknown."""
    return isinstance(factor, Tensor) or factor != 1


def _norm(tensor: Tensor, dim: int | tuple[int, int]) -> Tensor:
    if dim == -2 and tensor.is_cpu:
        # Along columns, torch.linalg.vector_norm takes six times as long.
        parts = tensor.abs() if tensor.is_complex() else tensor
        return (parts * parts).sum(-2, keepdim=True).sqrt_()
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return norm


def matrix_norms(tensors: list[Tensor]) -> Tensor:
    """Returns the norm of each matrix, concatenated over batches, as a vector."""
    matrices = [
        matrix
        for tensor in map(wide, tensors)
        for matrix in (tensor.flatten(0, -3).unbind() if tensor.ndim > 2 else (tensor,))
    ]
    return torch.stack(torch._foreach_norm(matrices))


def quotients(above: list[Tensor], below: list[Tensor]) -> list[Tensor]:
    """Returns the factors by which modules have scaled their inputs."""
    return list(torch._foreach_div(above, torch._foreach_add(below, TINY)))


def split_like(numbers: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Splits a vector with a number for each matrix into shapes that broadcast with tensors."""
    shapes = [(*tensor.shape[:-2], 1, 1) for tensor in tensors]
    counts = [math.prod(shape) for shape in shapes]
    parts = numbers.split(counts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def in_dtype_of(factors: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Returns factors in the dtype of the tensors, except float16, whose range is too small."""
    dtype = tensors[0].dtype
    if dtype in (torch.float16, factors[0].dtype):
        return factors
    return [factor.to(dtype) for factor in factors]
