"""Bases of dominant subspaces are those of a float64 SVD, whatever the matrix, and orthonormal."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from projcore.errors import ArgumentError
from projcore_lowrank._subspace import (
    Method,
    _folded,
    _follow,
    captured,
    dominant,
    orthonormalize,
)

METHODS: tuple[Method, ...] = get_args(Method)
SHAPES = [(12, 12), (12, 40), (40, 12), (13, 37), (2, 12, 30), (2, 3, 20, 12)]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
# Orthonormal to some units of rounding: 1e-6 in float32.
ORTHONORMAL = {
    torch.float32: 2e-6,
    torch.complex64: 2e-6,
    torch.float64: 4e-15,
    torch.complex128: 4e-15,
}


def decaying(shape: tuple[int, ...], ratio: float, dtype: Any = torch.float64) -> Tensor:
    """Returns matrices with singular values ratio^0, ratio^1, ... and random singular vectors."""
    random = torch.Generator().manual_seed(sum(shape))
    *batch, m, n = shape
    wide = torch.complex128 if dtype.is_complex else torch.float64
    least = min(m, n)
    left = torch.linalg.qr(torch.randn(*batch, m, least, dtype=wide, generator=random)).Q
    right = torch.linalg.qr(torch.randn(*batch, n, least, dtype=wide, generator=random)).Q
    values = ratio ** torch.arange(least, dtype=torch.float64)
    return ((left * values) @ right.mH).to(dtype)


def check_orthonormal(basis: Tensor) -> None:
    exact = basis.to(torch.complex128 if basis.is_complex() else torch.float64)
    gram = exact.mH @ exact
    assert_close(
        gram,
        torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram),
        atol=ORTHONORMAL[basis.dtype],
        rtol=0,
    )


def sine(matrix: Tensor, basis: Tensor) -> float:
    """Returns the sine of the largest angle between a basis and the best of its size."""
    wide = torch.complex128 if matrix.is_complex() else torch.float64
    best = torch.linalg.svd(matrix.to(wide), full_matrices=False).U[..., : basis.shape[-1]]
    basis = basis.to(wide)
    outside = basis - best @ (best.mH @ basis)
    return float(torch.linalg.matrix_norm(outside, 2).max())


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_any_rank_gives_orthonormal_columns(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    matrix = decaying(shape, 0.6).to(dtype) if not dtype.is_complex else decaying(shape, 0.6, dtype)
    before = matrix.clone()
    for rank in (1, 5, 12, shape[-2]):
        for oversampling in (0, 3):
            basis = dominant(matrix, rank, method, oversampling=oversampling)
            assert basis.shape == (*shape[:-1], rank)
            assert basis.is_contiguous()
            assert basis.untyped_storage().nbytes() == basis.nbytes
            half = dtype in (torch.bfloat16, torch.float16)
            assert basis.dtype == (torch.float32 if half else dtype)
            check_orthonormal(basis)
    assert_close(matrix, before, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_methods_find_the_singular_vectors_in_order(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    matrix = decaying(shape, 0.6, dtype)
    eps = torch.finfo(dtype).eps
    best = torch.linalg.svd(matrix, full_matrices=False).U
    for method in ("svd", "gram"):
        basis = dominant(matrix, 5, method)
        assert sine(matrix, basis) < 100 * eps  # 0.6^5 apart: 1 / gap is 32
        aligned = (best[..., :5].conj() * basis).sum(-2).abs()
        assert_close(aligned, torch.ones_like(aligned), atol=1e3 * eps, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iterations_converge_to_the_singular_vectors(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    matrix = decaying(shape, 0.3, dtype)
    tolerance = 1e3 * torch.finfo(dtype).eps
    assert sine(matrix, dominant(matrix, 3, "randomized", power=20)) < tolerance
    ordered = dominant(matrix, 3, "randomized", power=20, oversampling=4)
    best = torch.linalg.svd(matrix, full_matrices=False).U[..., :3]
    aligned = (best.conj() * ordered).sum(-2).abs()
    assert_close(aligned, torch.ones_like(aligned), atol=tolerance, rtol=0)
    basis = None
    for _ in range(20):
        basis = dominant(matrix, 3, "subspace_whole", basis)
    assert basis is not None
    # Its start is stirred each time, by the square root of rounding.
    assert sine(matrix, basis) < torch.finfo(dtype).eps ** 0.5


def test_oversampling_and_power_capture_more() -> None:
    matrix = decaying((60, 90), 0.97, torch.float32)
    best = captured(matrix, dominant(matrix, 10, "svd"))
    parts = [
        float(captured(matrix, dominant(matrix, 10, "randomized", power=p, oversampling=k)) / best)
        for p, k in ((1, 0), (1, 10), (2, 10), (4, 10))
    ]
    assert parts == sorted(parts)
    assert parts[0] > 0.75
    assert parts[-1] > 0.99


def test_an_old_basis_helps() -> None:
    matrix = decaying((60, 90), 0.97, torch.float32)
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 90, generator=random)
    old = dominant(matrix + 0.3 * noise * matrix.norm() / noise.norm(), 10, "svd")
    best = captured(matrix, dominant(matrix, 10, "svd"))
    stale = captured(matrix, old) / best
    followed = captured(matrix, dominant(matrix, 10, "subspace", old)) / best
    drawn = captured(matrix, dominant(matrix, 10, "subspace")) / best
    assert followed > 0.99 > stale > drawn


@pytest.mark.parametrize("rank", [1, 3, 8, 16])
@pytest.mark.parametrize("method", METHODS)
def test_matrices_of_low_rank(method: Method, rank: int) -> None:
    random = torch.Generator().manual_seed(0)
    thin = torch.randn(16, 3, generator=random) @ torch.randn(3, 24, generator=random)
    rows = torch.zeros(16, 24)
    rows[5] = 1.0
    equal = torch.ones(16, 24)
    for matrix, needed in ((thin, 3), (rows, 1), (equal, 1), (torch.zeros(16, 24), 0)):
        for start in (None, torch.eye(16)[:, :rank]):
            basis = dominant(matrix, rank, method, start)
            check_orthonormal(basis)
            if rank >= needed:
                assert_close(captured(matrix, basis), torch.tensor(1.0), atol=3e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_scale_does_not_matter(method: Method, scale: float) -> None:
    matrix = decaying((12, 30), 0.5, torch.float32)
    one, other = (dominant(each, 4, method) for each in (matrix, matrix * scale))
    check_orthonormal(other)
    assert_close(captured(matrix * scale, other), captured(matrix, one), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_matrices(method: Method) -> None:
    matrices = decaying((2, 3, 14, 22), 0.4)
    start = dominant(matrices.flip(0), 4, "svd")
    together = dominant(matrices, 6, method, start)
    for i in range(2):
        for j in range(3):
            alone = dominant(matrices[i, j], 6, method, start[i, j])
            assert_close(together[i, j], alone, atol=1e-9, rtol=0)


def test_layout_does_not_matter() -> None:
    matrix = decaying((20, 34), 0.5)
    for method in METHODS:
        turned = matrix.mT.contiguous().mT
        assert_close(dominant(turned, 4, method), dominant(matrix, 4, method), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_singular_vectors_stay_as_they_are(dtype: torch.dtype) -> None:
    matrix = decaying((20, 34), 0.5, dtype)
    best = dominant(matrix, 4, "svd") * torch.tensor([1, -1, -1, 1])
    tolerance = torch.finfo(dtype).eps ** 0.5
    assert_close(dominant(matrix, 4, "subspace", best), best, atol=tolerance, rtol=0)


def test_a_zero_matrix_keeps_the_basis() -> None:
    start = orthonormalize(torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(0)))
    matrix = decaying((3, 16, 30), 0.5, torch.float32)
    matrix[1] = 0
    basis = dominant(matrix, 5, "subspace", start)
    assert_close(basis[1], start[1], atol=1e-6, rtol=0)
    assert captured(matrix, basis)[0] > captured(matrix, start)[0] + 0.1


def test_the_rank_may_change() -> None:
    matrix = decaying((2, 20, 50), 0.5, torch.float32)
    start = dominant(matrix, 5, "svd")
    fewer = dominant(matrix, 3, "subspace", start)
    assert_close(fewer, start[..., :3], atol=3e-4, rtol=0)  # the root of rounding, see above
    more = dominant(matrix, 8, "subspace", start)
    assert_close(more[..., :5], start, atol=3e-4, rtol=0)
    assert (captured(matrix, more) > captured(matrix, start)).all()


def test_folding_adds_each_column_once() -> None:
    for columns in (10, 17, 24, 30, 64):
        for width in range(9, columns, 4):
            eye = torch.eye(columns)
            matrix = _folded(eye, width, 3)  # (columns, width)
            assert matrix.shape[-1] == width
            assert_close(matrix.abs().sum(1), torch.ones(columns))
            assert_close(matrix.abs().amax(1), torch.ones(columns))
            a = decaying((12, columns), 0.9, torch.float32)
            assert_close(_folded(a, width, 3), a @ matrix)


def test_folding_keeps_the_gram_on_average() -> None:
    a = decaying((6, 24), 0.8)
    exact = a @ a.mT
    count = 4000
    folded = [_folded(a, 8, seed) for seed in range(count)]
    grams = torch.stack([each @ each.mT for each in folded])
    # Five standard errors of each entry.
    assert ((grams.mean(0) - exact).abs() <= 5 * grams.std(0) / count**0.5 + 1e-12).all()


def test_folding_is_for_matrices_of_few_columns() -> None:
    start = torch.eye(90)[:, :20]
    for columns, equal in ((52, True), (53, False), (80, False), (81, True)):
        matrix = decaying((90, columns), 0.6, torch.float32)
        folded = dominant(matrix, 20, "subspace", start)
        exact = dominant(matrix, 20, "subspace_whole", start)
        assert torch.equal(folded, exact) is equal


def powers(exponent: float, *batch: int) -> Tensor:
    """Returns square matrices with singular values 1, 2^exponent, ..."""
    random = torch.Generator().manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(2, *batch, 240, 240, generator=random)).Q
    return (left * torch.arange(1, 241) ** exponent) @ right


@pytest.mark.parametrize("exponent", [-0.3, -0.6, -1.0, -1.5, -3.0])
def test_what_a_fold_would_miss_is_looked_for_in_the_whole(exponent: float) -> None:
    matrix = powers(exponent)
    start = torch.eye(240)[:, :80]
    folded, _ = _follow(_folded(matrix, 112, 0), start, 0, 8)
    found, drawn = dominant(matrix, 80, "subspace", start), float(captured(matrix, folded))
    # The estimate is the truth up to a factor of 2 or so.
    assert torch.equal(found, folded) is (exponent < -1)
    assert (drawn > 0.995) is (exponent < -1)
    if exponent >= -1:
        best = captured(matrix, dominant(matrix, 80, "svd"))
        whole = captured(matrix, dominant(matrix, 80, "subspace_whole", start))
        assert captured(matrix, found) > whole > drawn
        assert captured(matrix, found) > 0.9 * best


@pytest.mark.parametrize("exponent", [-0.3, -1.0, -1.5])
def test_what_is_outside_is_estimated(exponent: float) -> None:
    matrix = powers(exponent)
    estimates = []
    for seed in range(20, 40):
        basis, estimate = _follow(matrix, torch.eye(240)[:, :80], seed, 8)
        estimates.append(float(estimate / (1 - captured(matrix, basis))))
    assert min(estimates) > 0.5
    assert max(estimates) < 2


def test_of_a_batch_only_some_may_need_the_whole() -> None:
    matrices = torch.stack([powers(-0.3), powers(-1.5), torch.zeros(240, 240)])
    start = torch.eye(240)[:, :80].expand(3, 240, 80)
    together = dominant(matrices, 80, "subspace", start)
    check_orthonormal(together)
    for i in range(3):
        alone = dominant(matrices[i], 80, "subspace", start[i])
        assert_close(captured(matrices[i], together[i]), captured(matrices[i], alone))


@pytest.mark.parametrize("method", METHODS)
def test_random_numbers_come_from_the_source_alone(method: Method) -> None:
    matrix = decaying((12, 14), 0.9, torch.float32)
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def basis(source: Any) -> Tensor:
        return dominant(matrix, 5, method, generator=source)

    assert torch.equal(basis(None), basis(0))
    assert torch.equal(basis(7), basis(7))
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert torch.equal(*[basis(generator) for generator in generators])
    assert torch.equal(torch.get_rng_state(), state)
    drawn = method in ("randomized", "subspace", "subspace_whole")
    assert torch.equal(basis(7), basis(8)) is not drawn
    assert torch.equal(basis(generators[0]), basis(7)) is not drawn


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orthonormalize_is_the_qr_with_a_positive_diagonal(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    for shape in ((9, 4), (5, 5), (3, 9, 4), (4, 1)):
        y = torch.randn(shape, dtype=dtype, generator=random)
        q = orthonormalize(y)
        check_orthonormal(q)
        triangle = q.mH @ y
        eps = torch.finfo(dtype).eps
        assert_close(triangle, triangle.triu(), atol=50 * eps, rtol=0)
        assert_close(q @ triangle, y, atol=50 * eps, rtol=0)
        diagonal = triangle.diagonal(dim1=-2, dim2=-1)
        assert (diagonal.real > 0).all()
        assert_close(diagonal, diagonal.real.to(dtype), atol=50 * eps, rtol=0)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8, 1e11, float("inf")])
def test_orthonormalize_whatever_the_condition(condition: float, scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    for m, r in ((64, 16), (40, 40), (300, 20)):
        left, right = (
            torch.linalg.qr(torch.randn(k, r, dtype=torch.float64, generator=random)).Q
            for k in (m, r)
        )
        exponents = torch.linspace(0, -1, r, dtype=torch.float64)
        values = min(condition, 1e300) ** exponents
        y = ((left * values) @ right.mT * scale).float()
        check_orthonormal(orthonormalize(y))
        columns = (left * values * scale).float()  # each column as short as its value
        q = orthonormalize(columns)
        check_orthonormal(q)
        if condition < 1e12 and scale == 1:
            aligned = (q.double() * left).sum(0)
            assert_close(aligned, torch.ones_like(aligned), atol=1e-5, rtol=0)
        y[:, 3] = 0
        y[:, 5] = y[:, 4]
        y[:, -1] = 0
        check_orthonormal(orthonormalize(y))
    check_orthonormal(orthonormalize(torch.zeros(2, 8, 5)))
    check_orthonormal(orthonormalize(torch.full((8, 5), scale)))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
def test_captured(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    matrix = torch.randn(3, 9, 14, dtype=wide, generator=random).to(dtype)
    basis = dominant(torch.randn(3, 9, 14, dtype=wide, generator=random), 4, "svd")
    exact = matrix.to(wide)
    expected = (basis.mH @ exact).abs().square().sum((-2, -1)) / exact.abs().square().sum((-2, -1))
    result = captured(matrix, basis.to(dtype))
    assert result.shape == (3,)
    assert not result.is_complex()
    atol = 5e-3 if dtype == torch.bfloat16 else 1e-6  # the basis is rounded to 8 bits
    assert_close(result.double(), expected, atol=atol, rtol=0)
    values = torch.linalg.svdvals(exact)
    best = values[:, :4].square().sum(-1) / values.square().sum(-1)
    result = captured(exact, dominant(exact, 4, "svd"))
    assert_close(result, best)


def test_captured_of_extremes() -> None:
    basis = torch.eye(6)[:, :2]
    assert captured(torch.zeros(6, 9), basis) == 1
    for scale in (1e-38, 1e-30, 1e30, 1e38):
        assert_close(captured(scale * torch.eye(6), basis), torch.tensor(1 / 3))


def test_arguments_are_checked() -> None:
    matrix = torch.ones(4, 6)
    for rank in (0, -1, 5):
        with pytest.raises(ArgumentError, match=rf"rank={rank}\).*4 rows.*at most their number"):
            dominant(matrix, rank, "svd")
    with pytest.raises(ArgumentError, match=r"power=0.*at least 1"):
        dominant(matrix, 2, "randomized", power=0)
    with pytest.raises(ArgumentError, match=r"oversampling=-1.*at least 0"):
        dominant(matrix, 2, "randomized", oversampling=-1)
    with pytest.raises(
        ArgumentError, match=r"'qr'.*svd, gram, randomized, subspace, subspace_whole"
    ):
        dominant(matrix, 2, "qr")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"shape \(6, 2\).*shape \(4, 6\)"):
        dominant(matrix, 2, "subspace", torch.ones(6, 2))
    with pytest.raises(ArgumentError, match="5 columns of length 4"):
        orthonormalize(torch.ones(4, 5))
