"""Random linear maps composed of Hadamard transforms, by keys; no matrix is formed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from projcore.ops import wide
from projcore_lowrank._seeded import mix, permutation, rademacher, stream

FACTOR = 64  # the Walsh-Hadamard transform of this length is one product with a matrix
CHUNK = 1 << 20  # elements that Fastfood holds at a time


def srht_down(x: Tensor, seed: int, rank: int) -> Tensor:
    r"""Applies a subsampled randomized Hadamard transform to the columns of a matrix.

    .. math:: z = R \, H_2 D_2 \, H_1 D_1 \, x

    where :math:`D_i` are random signs, :math:`H_1` is the orthonormal Walsh-Hadamard transform of
    the first `N` entries, `N` the largest power of two up to `s`, :math:`H_2` that of the last `N`,
    and :math:`R` takes `r` of the `s` entries in random order. For a power of two :math:`H_2 D_2`
    is omitted. The matrix of the map has orthonormal rows: `srht_up` is its transpose,
    ``srht_down(srht_up(z)) == z`` up to rounding, and with a random seed
    :math:`E[\mathrm{up}(\mathrm{down}(x))] = (r / s) x`.

    Takes `x`, shape ``(s, ...)``, real or complex, to ``(r, ...)``, by :math:`O(s \log s)`
    operations a column, and `3s` random numbers in all. bfloat16 and float16 are transformed in
    float32.

    Differs from the usual transform (Tropp, 2011, https://arxiv.org/abs/1011.1595): if `s` is not a
    power of two, that pads with zeros, which makes its rows not orthonormal. Two overlapping
    transforms cost as much, and keep them orthonormal.

    Example:
        >>> z = torch.tensor([[1.0], [2.0]])
        >>> srht_down(srht_up(z, seed=0, length=5), seed=0, rank=2)
        tensor([[1.],
                [2.]])
    """
    length = len(x)
    kept = _kept(seed, length, rank, x.device)
    mixed = wide(x)
    for stage, start, size in _stages(length):
        mixed = mixed * _signs(seed, stage, mixed)
        mixed = _within(mixed, start, size)
    return mixed.index_select(0, kept).to(x.dtype)


def srht_up(z: Tensor, seed: int, length: int) -> Tensor:
    """Applies the transpose of `srht_down`, from ``(r, ...)`` to ``(length, ...)``."""
    kept = _kept(seed, length, len(z), z.device)
    working = wide(z)
    mixed = working.new_zeros(length, *z.shape[1:]).index_copy_(0, kept, working)
    for stage, start, size in reversed(_stages(length)):
        mixed = _within(mixed, start, size)
        mixed = mixed * _signs(seed, stage, mixed)
    return mixed.to(z.dtype)


def fastfood_up(z: Tensor, seed: int, length: int) -> Tensor:
    r"""Maps a vector to a longer one by a random matrix with columns of about unit length.

    The matrix is a stack of :math:`D / n` blocks, `n` the smallest power of two from `d`, the last
    one truncated,

    .. math:: \sqrt{n / D} \; S \, H G \Pi H B

    with, independent in each block, signs :math:`B`, normal numbers :math:`G` scaled to the length
    :math:`\sqrt n` and the lengths of rows :math:`S`, distributed as those of Gaussian vectors (by
    the approximation of Wilson and Hilferty), and with a permutation :math:`\Pi` and the
    orthonormal Walsh-Hadamard transform :math:`H`; `z` is padded with zeros to length `n`. With a
    random seed its entries have mean 0 and variance :math:`1 / D`, uncorrelated, so that
    :math:`E[\mathrm{down}(\mathrm{up}(z))] = z`.

    Takes `z`, shape ``(d,)``, real or complex, to ``(D,)``, by :math:`O(D \log d)` operations, `3D`
    random numbers, and memory for about a million numbers besides the result. bfloat16 and float16
    are computed in float32.

    Differs from the paper (Le, Sarlós, Smola, 2013, https://arxiv.org/abs/1408.3060, equation 7):
    one permutation serves all blocks. The entries remain uncorrelated through the signs, and
    sorting random numbers for each would take longer than everything else.

    Example:
        >>> z = torch.tensor([3.0, 4.0])
        >>> abs(fastfood_up(z, seed=0, length=100_000).norm() / 5 - 1) < 0.05
        tensor(True)
    """
    n = 1 << (len(z) - 1).bit_length()
    working = wide(z)
    padded = torch.cat([working, working.new_zeros(n - len(z))])
    order = permutation(mix(seed, 0), n, z.device)
    parts = []
    for signs, weights, lengths in _blocks(seed, n, length, padded):
        mixed = walsh_hadamard(signs * padded)[:, order]
        parts.append((lengths * walsh_hadamard(weights * mixed)).flatten())
    return torch.cat(parts)[:length].mul_((n / length) ** 0.5).to(z.dtype)


def fastfood_down(x: Tensor, seed: int, rank: int) -> Tensor:
    """Applies the transpose of `fastfood_up`, from ``(D,)`` to ``(rank,)``."""
    n = 1 << (rank - 1).bit_length()
    working = wide(x)
    order = permutation(mix(seed, 0), n, x.device)
    total: Tensor = working.new_zeros(n)
    start = 0
    for signs, weights, lengths in _blocks(seed, n, len(x), working):
        part = working[start : start + lengths.numel()]
        start += lengths.numel()
        part = torch.cat([part, part.new_zeros(lengths.numel() - len(part))]).reshape(-1, n)
        mixed = weights * walsh_hadamard(lengths * part)
        back = torch.empty_like(mixed).index_copy_(1, order, mixed)
        total += (signs * walsh_hadamard(back)).sum(0)
    total = total[:rank] * (n / len(x)) ** 0.5
    return total.to(x.dtype)


def walsh_hadamard(x: Tensor, dim: int = -1) -> Tensor:
    """Returns the orthonormal transform along a dimension, a power of two long, in O(n log n).

    In the order of `scipy.linalg.hadamard`. It is its own inverse and transpose.
    """
    length = x.shape[dim]
    inner = x.shape[dim % x.ndim + 1 :].numel()
    done = 1
    result: Tensor = x
    while done < length:
        # The matrix of a b is the Kronecker product of those of a and b.
        size = min(FACTOR, length // done)
        matrix = _hadamard(size, x)
        if done * inner == 1:
            result = result.reshape(-1, size) @ matrix
        else:
            result = matrix @ result.reshape(-1, size, done * inner)
        done *= size
    return result.reshape(x.shape)


def _hadamard(size: int, like: Tensor) -> Tensor:
    matrix = like.new_full((1, 1), size**-0.5)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _within(x: Tensor, start: int, size: int) -> Tensor:
    """Transforms `size` entries of the first dimension from `start` on."""
    if size == len(x):
        return walsh_hadamard(x, 0)
    before, inside, after = x.tensor_split([start, start + size])
    return torch.cat([before, walsh_hadamard(inside, 0), after])


def _stages(length: int) -> list[tuple[int, int, int]]:
    """Returns number, start and size of the transforms that together mix a length."""
    size = 1 << (length.bit_length() - 1)
    return [(1, 0, size)] + ([(2, length - size, size)] if size < length else [])


def _signs(seed: int, stage: int, like: Tensor) -> Tensor:
    signs = rademacher(mix(seed, stage), (len(like),), like.dtype, like.device)
    return signs.reshape(-1, *[1] * (like.ndim - 1))


def _kept(seed: int, length: int, rank: int, device: torch.device) -> Tensor:
    return permutation(mix(seed, 0), length, device)[:rank]


def _blocks(
    seed: int, n: int, length: int, like: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the diagonals B, G and S of some blocks of Fastfood at a time, shape ``(k, n)``."""
    left = -(-length // n)
    chunk = 0
    while left > 0:
        shape = (min(left, max(1, CHUNK // n)), n)
        chunk += 1
        signs, weights, normal = (
            draw(mix(seed, number, chunk), shape, like.dtype.to_real(), like.device)
            for number, draw in enumerate((rademacher, stream, stream), start=1)
        )
        weights = weights * (n**0.5 / torch.linalg.vector_norm(weights, dim=-1, keepdim=True))
        # Wilson and Hilferty: the cube root of chi-squared / n is about normal.
        root = (1 - 2 / (9 * n)) + (2 / (9 * n)) ** 0.5 * normal
        yield signs, weights, root.clamp(min=0) ** 1.5
        left -= shape[0]
