"""The Walsh-Hadamard transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Settings, require
from projcore_spectral._spectral import Spectral, along
from projcore_spectral._tables import table

Dims = tuple[int, ...]

# Factors of the transform up to this size are applied as one matrix product.
MATRIX = 64


class Hadamard(Spectral):
    r"""Runs modules on the Walsh-Hadamard transform of each tensor.

    Along each of ``dims``, of length :math:`n`, a power of two, :math:`z = H_n D x / \sqrt n` with

    .. math:: H_1 = 1, \qquad H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix},

    and :math:`D` the identity, or random signs on the diagonal. Other lengths are split into powers
    of two, the largest first, each transformed separately: 13 = 8 + 4 + 1. Each tensor has the same
    shape inside.

    Args:
        modules: The modules to run on the coefficients.
        signs: A seed for random signs, None for none. They mix the elements of every tensor,
            whatever its structure. Tensors of equal lengths have equal signs, which are kept in the
            state, so that a resumed run has them, too.
        dims: The dimensions to transform, None for all. Tensors that lack one pass unchanged.
        keep: Keep only the coefficients with the fewest sign changes, relative to their block's
            length (a low pass), along each dimension: an int is a count, a float a fraction. The
            other coefficients do not change: their updates are dropped.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If ``signs``, ``keep`` or ``dims`` is out of range.

    Cost: O(N log N) for N elements, each way, as products with matrices of at most 64 x 64; with
    signs, 1 byte of state for each index of each dimension. bfloat16 and float16 are transformed in
    float32. Not compiled.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Hadamard([Adam()], signs=0), LR(1e-2))

    References:
        Pratt, Kane, Andrews, 1969, Hadamard transform image coding,
        https://doi.org/10.1109/PROC.1969.6869; with random signs, Ailon, Chazelle, 2009,
        https://doi.org/10.1137/060673096 (its first two factors).
    """

    kinds = {"signs": "opaque"}  # reinitialized, they are the same
    traceable = False  # the cache of matrices

    def __init__(
        self,
        modules: Any,
        signs: int | None = None,
        dims: Sequence[int] | None = None,
        keep: float | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, dims, keep, project_update, project_params, project_grad)
        if signs is not None:
            require(self, "signs", signs, minimum=0)
        self.signs = signs

    def init(self, tensor: Tensor, settings: Settings) -> Entries:
        if self.signs is None:
            return {}
        _, lengths = self._dims_of(tensor.shape)
        random = torch.Generator().manual_seed(int(self.signs))
        drawn = torch.randint(
            0, 2, (sum(lengths),), generator=random, dtype=torch.int8, device="cpu"
        )
        return {"signs": (2 * drawn - 1).to(tensor.device)}

    def gather(self, states: list[Any]) -> Sequence[Any]:
        return [] if self.signs is None else [torch.stack([state["signs"] for state in states])]

    def forward(self, x: Tensor, dims: Dims, extra: Sequence[Any]) -> Tensor:
        return hadamard(_signed(x, dims, extra), dims)

    def backward(self, z: Tensor, dims: Dims, lengths: Dims, extra: Sequence[Any]) -> Tensor:
        return _signed(hadamard(z, dims), dims, extra)

    def select(self, z: Tensor, dims: Dims, kept: Dims) -> Tensor:
        for dim, count in zip(dims, kept, strict=True):
            if count < z.shape[dim]:
                z = z.index_select(dim, _smoothest(z.shape[dim], count, z.device))
        return z

    def embed(self, z: Tensor, dims: Dims, lengths: Dims) -> Tensor:
        for dim, length in zip(dims, lengths, strict=True):
            if z.shape[dim] < length:
                shape = list(z.shape)
                shape[dim] = length
                index = _smoothest(length, z.shape[dim], z.device)
                z = z.new_zeros(shape).index_copy(dim, index, z)
        return z


def hadamard(x: Tensor, dims: Dims) -> Tensor:
    """Returns the orthonormal transform along dimensions; it is its own inverse."""
    for dim in dims:
        x = _one(x, dim)
    return x


def _one(x: Tensor, dim: int) -> Tensor:
    length = x.shape[dim]
    if length < 2:
        return x
    largest = 1 << (length.bit_length() - 1)
    if length <= MATRIX:
        return along(x, hadamard_matrix(length, x.dtype, x.device), dim)
    if length > largest:
        rest = x.narrow(dim, largest, length - largest)
        return torch.cat([_one(x.narrow(dim, 0, largest), dim), _one(rest, dim)], dim)
    # The matrix of a b is the Kronecker product of those of a and b.
    x = x.unflatten(dim, (length // MATRIX, MATRIX))
    x = along(x, hadamard_matrix(MATRIX, x.dtype, x.device), dim + 1)
    return _one(x, dim).flatten(dim, dim + 1)


def _signed(x: Tensor, dims: Dims, extra: Sequence[Tensor]) -> Tensor:
    if not extra:
        return x
    start = 0
    for dim in dims:
        length = x.shape[dim]
        shape = [x.shape[0] if d == 0 else length if d == dim else 1 for d in range(x.ndim)]
        x = x * extra[0][:, start : start + length].reshape(shape)
        start += length
    return x


@table
def hadamard_matrix(length: int) -> Tensor:
    """Returns the orthonormal matrix; for other lengths than powers of two, of their blocks."""
    blocks = []
    while length:
        size = 1 << (length.bit_length() - 1)
        block = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        while len(block) < size:
            block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
        blocks.append(block / size**0.5)
        length -= size
    matrix: Tensor = torch.block_diag(*blocks)
    return matrix


def _smoothest(length: int, count: int, device: torch.device) -> Tensor:
    """Returns the indices of the coefficients with the fewest sign changes, ascending."""
    return _by_smoothness(length, None, device)[:count].sort().values


@table
def _by_smoothness(length: int) -> Tensor:
    frequencies = []
    while length:
        size = 1 << (length.bit_length() - 1)
        # The number of sign changes of row k is the number whose Gray code is k, bits reversed.
        k = torch.arange(size, device="cpu")
        reverse = torch.zeros_like(k)
        for _ in range(size.bit_length() - 1):
            reverse = 2 * reverse + k % 2
            k = k // 2
        changes = reverse
        while reverse.any():
            reverse = reverse >> 1
            changes = changes ^ reverse
        frequencies.append(changes.double() / size)
        length -= size
    return torch.argsort(torch.cat(frequencies), stable=True)
