"""Random numbers regenerated from a key whenever they are needed, instead of stored.

Numbers are a function of a key and an index: a hash of integers, which is the same on every device,
so that the same key gives the same matrix everywhere, up to rounding. They are computed on the
device, in as many operations for all matrices of a step as for one, without a copy from the host.
Global generators are neither read nor advanced. Two functions draw from a new torch generator on
the CPU, where that takes half the time or less: `permutation`, and `stream`, which also reproduces
the random numbers of published methods.

Real numbers are drawn in float32 and complex ones in complex64, so that runs in other dtypes see
the same matrix.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

Device = torch.device | str

MASK = (1 << 64) - 1
MULTIPLIER = 0xD6E8FEB86659FD93 - (1 << 64)  # as a signed number; Evensen, see `bits`
CACHED = 1 << 16  # hashes computed at a time on a CPU, which fit into its cache


def mix(*integers: int) -> int:
    """Returns a seed of 63 bits that depends on each of some integers, and on their order.

    Each is hashed by the finalizer of SplitMix64 (Steele, Lea, Flood, 2014,
    https://doi.org/10.1145/2660193.2660195, figure 16, in the variant 13 of Stafford), so that keys
    that differ in one bit give unrelated seeds. Only the last 64 bits of an integer count.

    Example:
        >>> mix(0, 7, 3)
        7308909078062206271
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
    r"""Returns random integers of 64 bits, a given number for each key, in one vector.

    That of key `k` at index `i`, counted from ``start``, is :math:`h(h(h(x)))`,
    :math:`x = \mathrm{mix}(k) + i`, with :math:`h(x) = y \oplus \lfloor y / 2^{32} \rfloor`,
    :math:`y = c x \bmod 2^{64}`: three rounds of multiplication by an odd number and a shift
    (Evensen, 2018,
    https://mostlymangling.blogspot.com/2018/07/on-mixing-functions-in-fast-splittable.html). Each
    is a permutation, so that all integers of a key differ. Eight operations in place,
    whatever the number of keys.

    Example:
        >>> bool((bits([3], [5])[2:] == bits([3], [3], start=2)).all())
        True
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
    numbers have real and imaginary parts of variance 1/2 each. Each shape has a list of keys, and
    gives a tensor ``(len(keys), *shape)``.

    Cost: about twenty operations, whatever the number of keys, and memory of twice the result.
    On a CPU it takes two to three times as long as ``torch.randn``.

    Example:
        >>> first, second = gaussians([[1, 2], [3]], [(4, 5), (6,)])
        >>> first.shape, second.shape
        (torch.Size([2, 4, 5]), torch.Size([1, 6]))
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
    """Returns lengths and angles of pairs of normal numbers, computed from hashes."""
    low, high = hashes.view(torch.int32).view(-1, 2).unbind(-1)
    lengths = torch.empty_like(hashes, dtype=torch.float32)
    torch.mul(low, 2.0**-31, out=lengths)  # rounded once in any default dtype
    # The logarithm of zero would be infinite; the smallest other number is 2 ** -31.
    lengths.abs_().log_().mul_(-2 * variance).clamp_(max=44 * variance).sqrt_()
    # A number of the CPU that is no Python number: in float32 with any default dtype.
    return lengths, high * torch.tensor(math.pi * 2.0**-31, dtype=torch.float32, device="cpu")


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
    """Returns independent normal numbers of mean 0 and variance 1, as `gaussians`."""
    return gaussians([[seed]], [shape], dtype, device)[0][0]


def stream(
    seed: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    """Returns the normal numbers that ``torch.randn`` draws after ``manual_seed`` on the CPU.

    They are drawn on the CPU, which costs a copy to the device.
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
    """Returns independent signs, 1 or -1, equally likely: 64 from each random number."""
    shape = torch.Size(shape)
    drawn = bits([seed], [-(-shape.numel() // 64)], device)
    places = torch.arange(8, dtype=torch.uint8, device=device)
    taken = drawn.view(torch.uint8).unsqueeze(-1).bitwise_right_shift(places).bitwise_and_(1)
    signs = taken.to(dtype).mul_(-2).add_(1)
    return signs.flatten()[: shape.numel()].reshape(shape)


def uniform_columns(normal: Tensor) -> Tensor:
    r"""Returns orthonormal columns, uniformly distributed if they are made of normal numbers.

    :math:`Q` of :math:`Z = Q R`, :math:`Z` Gaussian, with the diagonal of :math:`R` positive. This
    is the Haar measure on the Stiefel manifold: no rotation changes the distribution (Mezzadri,
    2007, https://arxiv.org/abs/math-ph/0609050, section 5). For `r` columns of length `m`,
    :math:`E[Q Q^H] = (r / m) I`, and it takes :math:`4 m r^2` operations.

    Example:
        >>> q = uniform_columns(gaussian(0, (5, 2)))
        >>> torch.allclose(q.mT @ q, torch.eye(2), atol=1e-6)
        True
    """
    q: Tensor
    q, r = torch.linalg.qr(normal)
    return q.mul_(r.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2))


def choices(keys: Sequence[int], count: int, length: int, device: Device = "cpu") -> Tensor:
    """Returns some of the numbers below a length, ascending: ``(len(keys), count)``.

    Every subset of this size is equally likely.
    """
    drawn = bits(keys, [length] * len(keys), device).view(len(keys), length)
    return drawn.topk(count, sorted=False).indices.sort(-1).values


def sample_scores(seed: int, weights: Tensor) -> Tensor:
    """Returns scores whose largest are a sample without replacement, by probabilities like weights.

    The weights of a batch, ``(..., n)``, share the random numbers: exponential ones with rates like
    the weights, of which the smallest are sampled. Those with a weight of zero come last.
    """
    waits = gaussian(seed, weights.shape[-1:], torch.complex64, weights.device).abs().square()
    waits = waits.clamp_(min=torch.finfo(waits.dtype).tiny)
    return weights.log() - waits.log().to(weights.dtype)


def permutation(seed: int, n: int, device: Device = "cpu") -> Tensor:
    """Returns the numbers below `n` in random order, every order equally likely.

    Drawn by a generator on the CPU, where that takes an eighth of the time of a sort.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(n, generator=generator, device="cpu").to(device)


def _signed(integer: int) -> int:
    """Returns the last 64 bits of an integer as a signed number."""
    return ((integer & MASK) ^ (1 << 63)) - (1 << 63)
