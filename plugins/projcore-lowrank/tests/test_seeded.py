"""Random matrices depend on their keys alone, and have the distributions that they claim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor
from torch.testing import assert_close

from projcore_lowrank import _seeded, _transforms
from projcore_lowrank._seeded import (
    bits,
    choices,
    gaussian,
    gaussians,
    mix,
    permutation,
    rademacher,
    stream,
    uniform_columns,
)
from projcore_lowrank._transforms import (
    fastfood_down,
    fastfood_up,
    srht_down,
    srht_up,
    walsh_hadamard,
)


def orthonormal(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    normal = gaussian(seed, shape, torch.promote_types(dtype, torch.float32), device)
    return uniform_columns(normal).to(dtype).contiguous()


LENGTHS = [1, 2, 3, 5, 8, 13, 64, 100, 128, 200]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
DRAWS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "orthonormal": orthonormal,
}

# Each draw of a key, one after the other: run here and in another process.
SAMPLE = """
import torch
from projcore_lowrank._seeded import *
from projcore_lowrank._transforms import *
z = torch.arange(1.0, 6.0)
parts = [gaussian(3, (5, 4)), rademacher(3, (5, 4)), permutation(3, 20)]
parts += [srht_up(z, 3, 11), srht_down(z, 3, 2), fastfood_up(z, 3, 11), fastfood_down(z, 3, 3)]
sample = [mix(1, 2, 3)] + [part.flatten().tolist() for part in parts]
"""


def test_mix_is_splitmix64() -> None:
    def reference(integers: tuple[int, ...]) -> int:
        with np.errstate(over="ignore"):
            state = np.uint64(len(integers))
            for integer in integers:
                state = state + np.uint64(0x9E3779B97F4A7C15)
                state ^= np.array(integer).astype(np.int64).view(np.uint64)
                state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                state = state ^ (state >> np.uint64(31))
            return int(state) >> 1

    for key in (
        (),
        (0,),
        (0, 0),
        (1, 2, 3),
        (3, 2, 1),
        (-1,),
        (2**63 - 1, -(2**63)),
        (123, 10**18),
    ):
        assert mix(*key) == reference(key)


def test_mix_spreads_keys() -> None:
    keys = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    keys += [(a,) for a in range(-500, 500)] + [(a, b) for a in range(20) for b in range(20)]
    seeds = [mix(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    changes = [
        (mix(seed, 5, 7) ^ mix(seed ^ (1 << bit), 5, 7)).bit_count()
        for seed in range(100)
        for bit in range(64)
    ]
    # Half of 63 bits change; the mean of 6400 has a standard error of 0.05.
    assert abs(np.mean(changes) - 31.5) < 0.25
    assert min(changes) > 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_functions_of_the_key(name: str, dtype: torch.dtype) -> None:
    draw = DRAWS[name]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = draw(5, (9, 4), dtype)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(draw(5, (9, 4), dtype, torch.device("cpu")), one)
    assert not torch.equal(draw(6, (9, 4), dtype), one)
    assert one.shape == (9, 4)
    assert one.dtype == dtype
    assert one.is_contiguous()
    if not dtype.is_complex:  # other dtypes see the same matrix
        eps = torch.finfo(dtype).eps
        assert_close(one.float(), draw(5, (9, 4)), atol=max(eps, 1e-6), rtol=eps)


@pytest.mark.parametrize("device", ["cpu", torch.device("meta")], ids=str)
def test_draws_go_to_the_device(device: torch.device) -> None:
    for draw in DRAWS.values():
        assert draw(0, (4, 3), torch.float32, device).device == torch.device(device)
    assert permutation(0, 4, device).device == torch.device(device)


def test_the_default_dtype_and_device_do_not_matter() -> None:
    def all_of_it() -> list[Tensor]:
        z = torch.ones(5, dtype=torch.float32, device="cpu")
        return [
            *(draw(1, (6, 3)) for draw in DRAWS.values()),
            permutation(1, 9),
            srht_up(z, 1, 11),
            fastfood_up(z, 1, 11),
            fastfood_down(z, 1, 3),
        ]

    expected = all_of_it()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = all_of_it()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(expected, found, strict=True):
        assert_close(one, other, atol=0, rtol=0)


def test_another_process_draws_the_same() -> None:
    here: dict[str, object] = {}
    exec(SAMPLE, here)
    there = subprocess.run(
        [sys.executable, "-c", SAMPLE + "print(repr(sample))"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.strip() == repr(here["sample"])


def test_operators_leave_the_global_generator() -> None:
    state = torch.get_rng_state()
    exec(SAMPLE, {})
    assert torch.equal(torch.get_rng_state(), state)


def test_gaussian_is_normal() -> None:
    x = gaussian(0, (200, 500), torch.float64).flatten()
    assert scipy.stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    z = gaussian(0, (200, 500), torch.complex128).flatten()
    for part in (z.real, z.imag):
        assert scipy.stats.kstest(part.numpy() * 2**0.5, "norm").pvalue > 1e-3
    assert abs(complex((z * z).mean())) < 5 / len(z) ** 0.5


def test_moments_of_a_million_normal_numbers() -> None:
    count = 1 << 20
    x = gaussian(1, (count,), torch.float64)
    # The variance of x ** k is E[x ** 2k] - E[x ** k] ** 2.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float(x.pow(power).mean()) - mean) < 5 * (variance / count) ** 0.5, power
    beyond = (x.abs() > 4).sum()
    expected = 2 * count * scipy.stats.norm.sf(4)
    assert abs(float(beyond) - expected) < 5 * expected**0.5
    assert x.abs().max() < 6.7


def test_numbers_are_not_correlated() -> None:
    """Neither neighbours, nor the numbers of keys that differ little, nor their squares."""
    count = 1 << 17
    keys = [*range(6), 1 << 20, 1 << 40, 1 << 62]
    (drawn,) = gaussians([keys], [(count,)], torch.float64)
    for row in drawn[:3]:
        for lag in (1, 2, 3, 4, 8, 64, 512, 1 << 16):
            for x in (row, row.square() / 2**0.5 - 0.5**0.5):
                assert abs(float((x[lag:] * x[:-lag]).mean())) < 5 / (count - lag) ** 0.5, lag
    for x in (drawn, drawn.square() / 2**0.5 - 0.5**0.5):
        covariance = x @ x.mT / count
        covariance.fill_diagonal_(0)
        assert covariance.abs().max() < 5 / count**0.5


def test_bits_are_fair_and_independent() -> None:
    """Each alone, each with each other, and with those of the next number and the next key."""
    count = 1 << 16
    drawn = bits([7, 8], [count, count]).view(2, count)
    places = torch.arange(64)
    signs = (drawn.unsqueeze(-1) >> places & 1).double() * 2 - 1  # (2, count, 64)
    assert signs.mean(1).abs().max() < 5 / count**0.5
    first, second = signs
    eye = torch.eye(64, dtype=torch.float64)
    pairs = (
        first.mT @ first / count - eye,
        first.mT @ second / count,
        first[1:].mT @ first[:-1] / count,
    )
    for covariance in pairs:
        assert covariance.abs().max() < 5.5 / count**0.5
    # A change of one bit of the place changes half of the bits.
    for bit in (0, 3, 11, 15):
        changed = (drawn[0] ^ drawn[0][torch.arange(count) ^ (1 << bit)]).unsqueeze(
            -1
        ) >> places & 1
        assert abs(float(changed.double().mean()) - 0.5) < 5 * 0.5 / (64 * count) ** 0.5 * 2**0.5
    byte = drawn.view(torch.uint8).view(-1, 8)
    for column in byte.unbind(1):
        assert scipy.stats.chisquare(torch.bincount(column.int(), minlength=256)).pvalue > 1e-4
    assert len(drawn[0].unique()) == count


def test_numbers_depend_on_key_and_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(bits([5, 6], [9, 4])[9:], bits([6], [4]))
    assert torch.equal(bits([5], [9])[3:], bits([5], [6], start=3))
    assert bits([5], [2]).tolist() == [-7656765158201245812, -8050027043494091130]
    whole = gaussians([[1, 2], [3]], [(50, 3), (7,)])
    assert torch.equal(whole[0][1], gaussian(2, (50, 3)))
    assert torch.equal(whole[1][0], gaussian(3, (7,)))
    monkeypatch.setattr(_seeded, "CACHED", 16)
    for one, other in zip(whole, gaussians([[1, 2], [3]], [(50, 3), (7,)]), strict=True):
        assert_close(one, other)  # the vectorized functions round otherwise at the end of a chunk


def test_a_graph_of_the_compiler_draws_the_same() -> None:
    drawn = torch.compile(lambda: gaussian(3, (5, 4)), backend="aot_eager", fullgraph=True)()
    assert_close(drawn, gaussian(3, (5, 4)))


def test_rademacher_is_fair() -> None:
    count = 64 * 1000 + 5
    x = rademacher(0, (count,))
    assert x.abs().eq(1).all()
    for lag in (0, 1, 2, 8, 63, 64, 1000, 8000, count // 8):
        product = x if lag == 0 else x[lag:] * x[:-lag]
        assert abs(float(product.mean())) < 5 / len(product) ** 0.5
    for shape in ((0,), (), (3, 0, 2), (1, 63), (65,), (2, 3, 4)):
        assert rademacher(0, shape).shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 4), (5, 5), (3, 1), (2, 7, 3), (3, 7, 7)], ids=str)
def test_orthonormal_is_orthonormal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    half = dtype in (torch.bfloat16, torch.float16)
    q = orthonormal(0, shape, dtype)
    q = q.float() if half else q
    small = q.mH @ q
    atol = 4 * torch.finfo(dtype).eps * (1 if half else 2)
    assert_close(small, torch.eye(small.shape[-1]).to(q).expand_as(small), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(4, 2), (3, 3)], ids=str)
def test_orthonormal_is_uniform(shape: tuple[int, int], dtype: torch.dtype) -> None:
    count = 40_000
    q = orthonormal(0, (count, *shape), dtype)
    m, r = shape
    # Every entry of a uniform basis has mean 0: with LAPACK's signs the first do not.
    assert (q.mean(0).abs() < 5 / (count * m) ** 0.5).all()
    projection = (q @ q.mH).mean(0)
    expected = r / m * torch.eye(m, dtype=dtype)
    assert ((projection - expected).abs() < 5 / count**0.5).all()
    # The square of an entry is a beta variable.
    half = 0.5 if dtype == torch.float64 else 1.0
    for entry in (q[:, 0, 0], q[:, -1, -1]):
        beta = scipy.stats.beta(half, half * (m - 1))
        assert scipy.stats.kstest(entry.abs().square().numpy(), beta.cdf).pvalue > 1e-3
    # Rotating it changes nothing.
    angle = orthonormal(1, (m, m), dtype)
    assert ((angle @ q).mean(0).abs() < 5 / (count * m) ** 0.5).all()


def test_permutation_is_uniform() -> None:
    assert permutation(0, 0).shape == (0,)
    assert_close(permutation(0, 50).sort().values, torch.arange(50))
    orders = [tuple(permutation(mix(seed), 4).tolist()) for seed in range(4800)]
    counts = list({order: orders.count(order) for order in orders}.values())
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_choices_are_uniform() -> None:
    drawn = choices([mix(seed) for seed in range(4200)], 3, 7)
    assert (drawn.diff(dim=-1) > 0).all()
    sets = [tuple(row) for row in drawn.tolist()]
    counts = [sets.count(each) for each in set(sets)]
    assert len(counts) == 35
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_stream_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(stream(3, (4, 5)), torch.randn(4, 5, generator=generator))


@pytest.mark.parametrize("length", [1, 2, 4, 32, 64, 128, 4096])
def test_walsh_hadamard_is_that_of_scipy(length: int) -> None:
    matrix = torch.from_numpy(scipy.linalg.hadamard(length)).double() / length**0.5
    x = gaussian(0, (3, length, 2), torch.float64)
    assert_close(walsh_hadamard(x, 1), matrix @ x)
    assert_close(walsh_hadamard(x[:, :, 0]), x[:, :, 0] @ matrix)
    assert_close(walsh_hadamard(x[0, :, 0]), matrix @ x[0, :, 0])
    complex_x = torch.complex(x[0], x[1])
    assert_close(walsh_hadamard(complex_x, 0), matrix.to(complex_x.dtype) @ complex_x)


def srht_matrix(seed: int, rank: int, length: int) -> Tensor:
    """Returns the dense matrix of the documented product."""
    size = 2 ** int(np.log2(length))
    walsh = torch.from_numpy(scipy.linalg.hadamard(size)).double() / size**0.5
    matrix = torch.eye(length, dtype=torch.float64)
    for stage in range(1 if size == length else 2):
        signs = rademacher(mix(seed, stage + 1), (length,), torch.float64)
        rest = torch.eye(length - size, dtype=torch.float64)
        blocks = (walsh, rest) if stage == 0 else (rest, walsh)
        matrix = torch.block_diag(*blocks) @ torch.diag(signs) @ matrix
    return matrix[permutation(mix(seed, 0), length)[:rank]]


@pytest.mark.parametrize("length", LENGTHS)
def test_srht_is_its_matrix_with_orthonormal_rows(length: int) -> None:
    for rank in sorted({1, (length + 1) // 2, length}):
        expected = srht_matrix(9, rank, length)
        eye = torch.eye(length, dtype=torch.float64)
        down = srht_down(eye, 9, rank)
        up = srht_up(torch.eye(rank, dtype=torch.float64), 9, length)
        assert_close(down, expected)
        assert_close(up, expected.mT)
        assert_close(down @ down.mT, torch.eye(rank, dtype=torch.float64))
        z = gaussian(1, (rank, 2, 3), torch.float64)
        assert_close(srht_down(srht_up(z, 9, length), 9, rank), z)
        assert_close(srht_up(z[:, 0, 0], 9, length), up @ z[:, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_in_other_dtypes(dtype: torch.dtype) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    z = gaussian(1, (6,), wide).to(dtype)
    x = gaussian(2, (21,), wide).to(dtype)
    for function, argument, size in (
        (srht_up, z, 21),
        (srht_down, x, 6),
        (fastfood_up, z, 21),
        (fastfood_down, x, 6),
    ):
        before = argument.clone()
        result = function(argument, 4, size)
        assert result.dtype == dtype
        expected = function(argument.to(wide), 4, size)
        eps = torch.finfo(dtype).eps
        assert_close(result.to(wide), expected, atol=10 * eps, rtol=eps)
        assert_close(argument, before, atol=0, rtol=0)


def test_srht_is_unbiased() -> None:
    for length, rank in ((8, 2), (11, 3)):
        eye = torch.eye(length, dtype=torch.float64)
        count = 1500
        grams = torch.stack(
            [srht_up(srht_down(eye, mix(s), rank), mix(s), length) for s in range(count)]
        )
        error = (grams.mean(0) - rank / length * eye).abs()
        assert (error <= 5 * grams.std(0) / count**0.5 + 1e-12).all()


def fastfood_matrix(seed: int, rank: int, length: int) -> Tensor:
    """Returns the dense matrix, of the documented product with the diagonals that are drawn."""
    n = 1 << max(0, int(np.ceil(np.log2(rank))))
    walsh = torch.from_numpy(scipy.linalg.hadamard(n)).double() / n**0.5
    swap = torch.eye(n, dtype=torch.float64)[permutation(mix(seed, 0), n)]
    rows = []
    for chunk in _transforms._blocks(seed, n, length, torch.empty(0, dtype=torch.float64)):
        for signs, weights, lengths in zip(*chunk, strict=True):
            assert_close(signs.abs(), torch.ones_like(signs))
            assert_close(weights.square().sum(), torch.tensor(float(n), dtype=torch.float64))
            b, g, s = torch.diag(signs), torch.diag(weights), torch.diag(lengths)
            rows.append(s @ walsh @ g @ swap @ walsh @ b)
    return (n / length) ** 0.5 * torch.cat(rows)[:length, :rank]


@pytest.mark.pairwise
@pytest.mark.parametrize("chunk", [1, 16, 1 << 20])
@pytest.mark.parametrize("length", [1, 7, 32, 100, 1000])
@pytest.mark.parametrize("rank", [1, 2, 3, 8, 20])
def test_fastfood_is_its_matrix(
    rank: int, length: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transforms, "CHUNK", chunk)
    expected = fastfood_matrix(5, rank, length)
    eye = torch.eye(rank, dtype=torch.float64)
    up = torch.stack([fastfood_up(column, 5, length) for column in eye], 1)
    assert_close(up, expected)
    x = gaussian(1, (length,), torch.float64)
    assert_close(fastfood_down(x, 5, rank), expected.mT @ x)
    z = gaussian(2, (rank,), torch.complex128)
    assert_close(fastfood_up(z, 5, length), expected.to(z.dtype) @ z)


def test_fastfood_blocks_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transforms, "CHUNK", 16)
    blocks = fastfood_matrix(5, 8, 80).reshape(10, 8, 8)
    for i in range(10):
        for j in range(i):
            assert (blocks[i].abs() - blocks[j].abs()).abs().max() > 0.01


def test_fastfood_columns_have_about_unit_length() -> None:
    matrix = fastfood_matrix(0, 30, 20_000)
    assert_close(matrix.norm(dim=0), torch.ones(30, dtype=torch.float64), atol=0.05, rtol=0)
    gram = matrix.mT @ matrix
    assert_close(gram, torch.eye(30, dtype=torch.float64), atol=0.05, rtol=0)


def test_fastfood_is_unbiased_and_gaussian() -> None:
    count, rank, length = 800, 3, 10
    matrices = torch.stack([fastfood_matrix(mix(seed), rank, length) for seed in range(count)])
    mean, deviation = matrices.mean(0), matrices.std(0)
    assert (mean.abs() < 5 * deviation / count**0.5).all()
    flat = matrices.flatten(1)
    covariance = flat.mT @ flat / count * length  # of all entries with all
    products = (flat[:, :, None] * flat[:, None, :] * length).std(0)
    eye = torch.eye(rank * length, dtype=torch.float64)
    assert ((covariance - eye).abs() < 5.5 * products / count**0.5).all()
    # Within a large block, entries are about normal, and the rows as long as Gaussian ones.
    block = fastfood_matrix(0, 256, 256 * 400) * (256 * 400) ** 0.5
    assert scipy.stats.kstest(block[::7, ::9].flatten().numpy(), "norm").pvalue > 1e-3
    squares = block.square().sum(1).numpy()
    assert scipy.stats.kstest(squares, scipy.stats.chi2(256).cdf).pvalue > 1e-3
