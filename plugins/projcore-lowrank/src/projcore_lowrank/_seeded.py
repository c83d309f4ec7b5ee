"""Random matrices made anew from a key whenever they are needed, instead of being stored.

Numbers are a function of a key and of their place: a hash of integers, which every device computes
alike, so that the same key gives the same matrix everywhere, up to rounding. They are made on the
device, in as many operations for all matrices of a step as for one, without a copy from the host.
Global generators are neither read nor moved. Two functions draw from one of torch's own, made for
the purpose, on the CPU, where that takes half the time or less: `permutation`, and `stream`, also
for methods whose authors published their numbers.

Real numbers are drawn in float32 and complex ones in complex64, so that runs in other dtypes see
the same matrix.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from projcore.errors import ArgumentError

Device = torch.device | str

MASK = (1 << 64) - 1
MULTIPLIER = 0xD6E8FEB86659FD93 - (1 << 64)  # as a signed number; Evensen, see `bits`
FACTOR = 64  # the Walsh-Hadamard transform of this length is one product with a matrix
CHUNK = 1 << 20  # numbers that Fastfood holds at a time
CACHED = 1 << 16  # hashes that are made at a time on a CPU, which fit into its cache


def mix(*integers: int) -> int:
    """Returns a seed of 63 bits that depends on each of some integers, and on their order.

    Each goes through the finalizer of SplitMix64, so that keys that differ in one bit give seeds
    without relation. Of an integer, the last 64 bits count. Equal on every platform.

    Example:
        >>> seed, parameter, refresh = 0, 7, 3
        >>> mix(seed, parameter, refresh)
        7308909078062206271

    References:
        Steele, Lea, Flood, 2014, https://doi.org/10.1145/2660193.2660195 (figure 16, mix64, in
        the variant 13 of Stafford)
    """
    state = len(integers)
    for integer in integers:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        state ^= integer & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def bits(
    keys: Sequence[int], counts: Sequence[int], device: Device = "cpu", start: int = 0
) -> Tensor:
    r"""Returns random integers of 64 bits, so many of each key, in one vector.

    That of key `k` at place `i` is :math:`h(h(h(x)))`, :math:`x = \mathrm{mix}(k) + i`, with
    :math:`h(x) = y \oplus \lfloor y / 2^{32} \rfloor`, :math:`y = c x \bmod 2^{64}`: three
    rounds of multiplication by an odd number and a shift. Each is a permutation, so that all
    integers of a key are different.

    Args:
        keys: Any integers.
        counts: How many of each.
        device: Where they are made.
        start: The place of the first of each key.

    Cost: eight operations in place, whatever the number of keys.

    Example:
        >>> bool((bits([3], [5])[2:] == bits([3], [3], start=2)).all())
        True

    References:
        Steele, Lea, Flood, 2014, https://doi.org/10.1145/2660193.2660195 (a hash of a counter as a
        generator); multiplier and shift: Evensen, 2018,
        https://mostlymangling.blogspot.com/2018/07/on-mixing-functions-in-fast-splittable.html.
    """
    x = torch.arange(sum(counts), dtype=torch.int64, device=device)
    if not len(x):
        return x
    begins, done = [], 0
    for key, count in zip(keys, counts, strict=True):
        begins.append(_signed(mix(key) + start - done))
        done += count
    torch._foreach_add_(list(x.split(list(counts))), begins)
    low, high = x.view(torch.int32).view(-1, 2).unbind(1)
    if sys.byteorder == "big":
        low, high = high, low
    for _ in range(3):
        x.mul_(MULTIPLIER)
        low.bitwise_xor_(high)
    return x


def gaussians(
    keys: Sequence[Sequence[int]],
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> list[Tensor]:
    r"""Returns independent normal numbers of mean 0 and variance 1, for many keys at once.

    Two from 64 bits, by the method of Box and Muller: :math:`\sqrt{-2 \ln u}` times the cosine
    and the sine of :math:`\pi v`, with `u` and `v` the two halves. None exceeds 6.7. Complex
    numbers have real and imaginary parts of variance 1/2 each.

    Args:
        keys: For each shape some keys.
        shapes: As said.
        dtype: Of the results. They are drawn in float32 or complex64.
        device: Where they are made.

    Returns:
        For each shape a tensor ``(len(keys), *shape)``.

    Cost: about twenty operations, whatever the number of keys, and memory of twice the result.
    On a CPU it takes two to three times as long as ``torch.randn``.

    Example:
        >>> first, second = gaussians([[1, 2], [3]], [(4, 5), (6,)])
        >>> first.shape, second.shape
        (torch.Size([2, 4, 5]), torch.Size([1, 6]))

    References:
        Box, Muller, 1958, https://doi.org/10.1214/aoms/1177706645
    """
    if torch.device(device).type == "meta":
        return [
            torch.empty(len(some), *shape, dtype=dtype, device=device)
            for some, shape in zip(keys, shapes, strict=True)
        ]
    sizes = [math.prod(shape) for shape in shapes]
    halves = [size if dtype.is_complex else -(-size // 2) for size in sizes]
    every = [key for some in keys for key in some]
    counts = [half for some, half in zip(keys, halves, strict=True) for _ in some]
    variance = 0.5 if dtype.is_complex else 1.0
    if torch.device(device).type != "cpu":
        drawn = torch.view_as_real(torch.polar(*_polar(bits(every, counts, device), variance)))
    else:
        drawn = torch.empty(sum(counts), 2, dtype=torch.float32, device=device)
        if len(drawn) <= CACHED:
            _fill_normal(drawn, bits(every, counts, device), variance)
        else:
            for key, part in zip(every, drawn.split(counts), strict=True):
                for start in range(0, len(part), CACHED):
                    chunk = part[start : start + CACHED]
                    _fill_normal(chunk, bits([key], [len(chunk)], device, start), variance)
    parts = drawn.split([len(some) * half for some, half in zip(keys, halves, strict=True)])
    result = []
    for some, shape, size, half, part in zip(keys, shapes, sizes, halves, parts, strict=True):
        numbers = torch.view_as_complex(part) if dtype.is_complex else part
        numbers = numbers.reshape(len(some), -1 if half else 0)[:, :size]
        result.append(numbers.reshape(len(some), *shape).to(dtype))
    return result


def _polar(hashes: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Returns lengths and angles of pairs of normal numbers, made of hashes."""
    low, high = hashes.view(torch.int32).view(-1, 2).unbind(-1)
    lengths = torch.empty_like(hashes, dtype=torch.float32)
    torch.mul(low, 2.0**-31, out=lengths)  # in any default dtype rounded once
    # The logarithm of zero would be infinite, and the least other number is 2 ** -31.
    lengths.abs_().log_().mul_(-2 * variance).clamp_(max=44 * variance).sqrt_()
    return lengths, high.to(torch.float32).mul_(math.pi * 2.0**-31)


def _fill_normal(out: Tensor, hashes: Tensor, variance: float) -> None:
    """Fills pairs, shape ``(n, 2)``: on a CPU five times as fast as `torch.polar`."""
    lengths, angles = _polar(hashes, variance)
    out[:, 0] = angles.cos().mul_(lengths)
    out[:, 1] = angles.sin_().mul_(lengths)


def gaussian(
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    """Returns independent normal numbers of mean 0 and variance 1, as `gaussians`.

    Example:
        >>> gaussian(0, (2, 3)).shape
        torch.Size([2, 3])
    """
    return gaussians([[seed]], [shape], dtype, device)[0][0]


def stream(
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    """Returns the normal numbers that ``torch.randn`` draws after ``manual_seed`` on the CPU.

    They are drawn there, which costs a copy to the device.
    """
    drawn = torch.complex64 if dtype.is_complex else torch.float32
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(tuple(shape), generator=generator, dtype=drawn, device="cpu")
    return numbers.to(device, dtype)


def rademacher(
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    """Returns independent signs, 1 or -1, equally likely.

    Cost: one random number for 64 signs.

    Example:
        >>> rademacher(0, (2, 3)).abs()
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    shape = torch.Size(shape)
    drawn = bits([seed], [-(-shape.numel() // 64)], device)
    places = torch.arange(8, dtype=torch.uint8, device=device)
    taken = drawn.view(torch.uint8).unsqueeze(-1).bitwise_right_shift(places).bitwise_and_(1)
    signs = taken.to(dtype).mul_(-2).add_(1)
    return signs.flatten()[: shape.numel()].reshape(shape)


def orthonormal(
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    r"""Returns orthonormal columns, or rows if there are fewer of these, uniformly distributed.

    :math:`Q` of :math:`Z = Q R`, :math:`Z` Gaussian, with the diagonal of :math:`R` positive. This
    is the Haar measure on the Stiefel manifold: no rotation changes the distribution. For `r`
    columns of length `m`, :math:`E[Q Q^H] = (r / m) I`.

    Args:
        shape: ``(..., m, r)``.

    Cost: :math:`4 m r^2` operations for `r` columns of length `m`.

    Example:
        >>> q = orthonormal(0, (5, 2))
        >>> torch.allclose(q.mT @ q, torch.eye(2), atol=1e-6)
        True

    References:
        Mezzadri, 2007, How to generate random matrices from the classical compact groups,
        https://arxiv.org/abs/math-ph/0609050 (section 5)
    """
    rows, columns = shape[-2:]
    tall = (*shape[:-2], max(rows, columns), min(rows, columns))
    q = uniform_columns(gaussian(seed, tall, _working(dtype), device)).to(dtype)
    drawn: Tensor = q.mH if rows < columns else q
    return drawn.contiguous()


def uniform_columns(normal: Tensor) -> Tensor:
    """Returns the orthonormal columns that `orthonormal` makes of normal numbers."""
    q: Tensor
    q, r = torch.linalg.qr(normal)
    return q.mul_(r.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2))


def choices(keys: Sequence[int], count: int, length: int, device: Device = "cpu") -> Tensor:
    """Returns some of the numbers below a length, ascending: ``(len(keys), count)``.

    Every set of so many is equally likely.

    Example:
        >>> choices([0], 4, 4)
        tensor([[0, 1, 2, 3]])
    """
    drawn = bits(keys, [length] * len(keys), device).view(len(keys), length)
    return drawn.topk(count, sorted=False).indices.sort(-1).values


def permutation(seed: int, n: int, device: Device = "cpu") -> Tensor:
    """Returns the numbers below `n` in random order, every order equally likely.

    Drawn by a generator on the CPU, where that takes an eighth of the time of a sort.

    Example:
        >>> permutation(0, 4).sort().values
        tensor([0, 1, 2, 3])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(n, generator=generator, device="cpu").to(device)


def srht_down(x: Tensor, seed: int, rank: int) -> Tensor:
    r"""Applies a subsampled randomized Hadamard transform to the columns of a matrix.

    .. math:: z = R \, H_2 D_2 \, H_1 D_1 \, x

    where :math:`D_i` are random signs, :math:`H_1` is the orthonormal Walsh-Hadamard transform of
    the first `N` entries, `N` the largest power of two up to `s`, :math:`H_2` that of the last `N`,
    and :math:`R` takes `r` of the `s` entries in random order. For a power of two :math:`H_2 D_2`
    is left out. The matrix of all this has orthonormal rows: `srht_up` is its transpose,
    ``srht_down(srht_up(z)) == z`` up to rounding, and with a random seed
    :math:`E[\mathrm{up}(\mathrm{down}(x))] = (r / s) x`.

    Args:
        x: Shape ``(s, ...)``, real or complex.
        seed: Of the signs and of the entries taken.
        rank: `r`, 1 to `s`.

    Returns:
        Shape ``(r, ...)``, in x's dtype.

    Raises:
        ArgumentError: If ``rank`` is out of range.

    Cost: :math:`O(s \log s)` operations a column, and `3s` random numbers in all. bfloat16 and
    float16 are transformed in float32.

    Differs from the usual transform: where `s` is no power of two, that fills up with zeros, and
    then its rows are not orthonormal. Two transforms that overlap cost as much, and they are.

    Example:
        >>> z = torch.tensor([[1.0], [2.0]])
        >>> srht_down(srht_up(z, seed=0, length=5), seed=0, rank=2)
        tensor([[1.],
                [2.]])

    References:
        Tropp, 2011, Improved analysis of the subsampled randomized Hadamard transform,
        https://arxiv.org/abs/1011.1595
    """
    length = len(x)
    kept = _kept(seed, length, rank, x.device)
    mixed = x.to(_working(x.dtype))
    for stage, start, size in _stages(length):
        mixed = mixed * _signs(seed, stage, mixed)
        mixed = _within(mixed, start, size)
    return mixed.index_select(0, kept).to(x.dtype)


def srht_up(z: Tensor, seed: int, length: int) -> Tensor:
    """Applies the transpose of `srht_down`, from ``(r, ...)`` to ``(length, ...)``."""
    kept = _kept(seed, length, len(z), z.device)
    mixed = z.new_zeros(length, *z.shape[1:], dtype=_working(z.dtype))
    mixed.index_copy_(0, kept, z.to(mixed.dtype))
    for stage, start, size in reversed(_stages(length)):
        mixed = _within(mixed, start, size)
        mixed = mixed * _signs(seed, stage, mixed)
    return mixed.to(z.dtype)


def fastfood_up(z: Tensor, seed: int, length: int) -> Tensor:
    r"""Maps a vector to a longer one by a random matrix with columns of about unit length.

    The matrix is a stack of :math:`D / n` blocks, `n` the least power of two from `d`, the last
    one cut off,

    .. math:: \sqrt{n / D} \; S \, H G \Pi H B

    with, new in each block, signs :math:`B`, normal numbers :math:`G` scaled to the length
    :math:`\sqrt n` and the lengths of rows :math:`S`, distributed as those of Gaussian vectors (by
    the approximation of Wilson and Hilferty), and with a permutation :math:`\Pi` and the
    orthonormal Walsh-Hadamard transform :math:`H`; zeros are put after `z` to length `n`. With a
    random seed its entries have mean 0 and variance :math:`1 / D`, uncorrelated, so that
    :math:`E[\mathrm{down}(\mathrm{up}(z))] = z`.

    Args:
        z: Shape ``(d,)``, real or complex.
        seed: Of all random numbers.
        length: `D`.

    Returns:
        Shape ``(D,)``, in z's dtype.

    Raises:
        ArgumentError: If `z` is no vector, or empty.

    Cost: :math:`O(D \log d)` operations, `3D` random numbers, and memory for about a million
    numbers beside the result. bfloat16 and float16 are computed in float32.

    Differs from the paper: one permutation serves all blocks. The entries remain uncorrelated
    through the signs, and sorting random numbers for each would take longer than all the rest.

    Example:
        >>> z = torch.tensor([3.0, 4.0])
        >>> abs(fastfood_up(z, seed=0, length=100_000).norm() / 5 - 1) < 0.05
        tensor(True)

    References:
        Le, Sarlós, Smola, 2013, https://arxiv.org/abs/1408.3060 (equation 7)
        Li et al., 2018, https://arxiv.org/abs/1804.08838 (section 2)
    """
    _vector("fastfood_up", z)
    n = _power_of_two(len(z))
    working = z.to(_working(z.dtype))
    padded = torch.cat([working, working.new_zeros(n - len(z))])
    order = permutation(mix(seed, 0), n, z.device)
    parts = []
    for signs, weights, lengths in _blocks(seed, n, length, padded):
        mixed = walsh_hadamard(signs * padded)[:, order]
        parts.append((lengths * walsh_hadamard(weights * mixed)).flatten())
    return torch.cat(parts)[:length].mul_((n / length) ** 0.5).to(z.dtype)


def fastfood_down(x: Tensor, seed: int, rank: int) -> Tensor:
    """Applies the transpose of `fastfood_up`, from ``(D,)`` to ``(rank,)``."""
    _vector("fastfood_down", x)
    n = _power_of_two(rank)
    working = x.to(_working(x.dtype))
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
    """Returns the orthonormal transform along a dimension, a power of two long.

    In the order of `scipy.linalg.hadamard`. It is its own inverse and transpose. Costs O(n log n).

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
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
    """Returns number, begin and size of the transforms that together mix a length."""
    size = 1 << (length.bit_length() - 1)
    return [(1, 0, size)] + ([(2, length - size, size)] if size < length else [])


def _signs(seed: int, stage: int, like: Tensor) -> Tensor:
    signs = rademacher(mix(seed, stage), (len(like),), like.dtype, like.device)
    return signs.reshape(-1, *[1] * (like.ndim - 1))


def _kept(seed: int, length: int, rank: int, device: torch.device) -> Tensor:
    if not 1 <= rank <= length:
        raise ArgumentError(
            f"srht was given rank {rank} and length {length}. The rank is at least 1 and at most "
            f"the length. Pass one up to {length}."
        )
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


def _vector(name: str, x: Tensor) -> None:
    if x.ndim != 1 or not len(x):
        raise ArgumentError(
            f"{name} was given a tensor of shape {tuple(x.shape)}. It maps a vector of at least "
            "one number. Flatten it first."
        )


def _power_of_two(length: int) -> int:
    """Returns the least from a length on."""
    return 1 << (length - 1).bit_length()


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _signed(integer: int) -> int:
    """Returns the last 64 bits of an integer as a signed number."""
    return ((integer & MASK) ^ (1 << 63)) - (1 << 63)
