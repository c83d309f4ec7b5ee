"""Orthonormal bases of dominant subspaces: pure functions of matrices, alone or in batches."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from projcore.errors import ArgumentError
from projcore.ops import wide
from projcore_lowrank._seeded import gaussian

Method = Literal["svd", "gram", "randomized", "subspace", "subspace_whole"]
Source = torch.Generator | int | None

# "subspace" sums at most FOLD_BELOW r columns to r + FOLD_MORE, which makes the iteration faster
# where the SVD is fastest.
FOLD_BELOW = 4
FOLD_MORE = 32
# If more than FOLD_LOSS of the squared norm is then outside, estimated by PROBES random sums of
# columns, a step with all columns follows.
FOLD_LOSS = 0.005
PROBES = 8
# It perturbs the last STIRRED columns of its start: otherwise directions orthogonal to the start
# are never found, for example if the zero rows of a gradient change.
STIRRED = 32


def dominant(
    matrix: Tensor,
    rank: int,
    method: Method,
    start: Tensor | None = None,
    generator: Source = None,
    power: int = 1,
    oversampling: int = 0,
) -> Tensor:
    r"""Returns orthonormal columns that span the top left singular subspace of a matrix.

    For a matrix :math:`A` of shape ``(..., m, n)`` the result :math:`P` has shape ``(..., m, r)``,
    and :math:`P^H P = I` up to rounding for every :math:`A`, also of lower rank, zero, or with
    fewer than `r` columns. The method

    - ``"svd"`` takes the first `r` left singular vectors, largest value first;
    - ``"gram"`` takes the eigenvectors of the smaller of :math:`A A^H` and :math:`A^H A`, in the
      same order. Directions of singular values below :math:`\sqrt\epsilon \sigma_1` are inaccurate;
    - ``"randomized"`` takes a basis of :math:`(A A^H)^q \Omega`, :math:`\Omega` Gaussian;
    - ``"subspace"`` takes a basis of :math:`A A^H P_0`, :math:`P_0` the previous basis, initially
      Gaussian columns. The columns keep their order and their signs, as far as
      :math:`A` allows; a zero :math:`A` keeps :math:`P_0`. If `n` is more than `r + 32`
      and at most `4r`, :math:`A S` takes the place of :math:`A`, where :math:`S` has `r + 32`
      columns: it sums columns with random signs. If more than about 0.005 of
      :math:`\|A\|_F^2` would stay outside, a step with all of :math:`A` follows. Accelerators take
      that step directly, since the decision would synchronize;
    - ``"subspace_whole"`` is ``"subspace"`` that takes that step directly for every `n`.

    The last three do not order the columns by singular value, except with ``oversampling``. The
    larger the gap after `r` singular values, the more accurate they are: on gradients of
    transformers all capture 0.999 of the SVD's energy; without a gap they capture less. If 0.38 of
    the energy is outside the best basis, 768 x 768 with ``rank=256``, a previous basis with 0.85 of
    the SVD's energy is followed by one with 0.92, or with 0.94 by ``"subspace_whole"``, which takes
    less time there; if 0.013 is outside, one with 0.97 by ones with 0.998 and 0.997.
    ``benchmarks/refresh.py`` times them.

    Args:
        matrix: Real or complex; the entries are finite, which is not checked.
        rank: `r`, 1 to `m`.
        method: The method, as above.
        start: :math:`P_0` of the last two, shape ``(..., m, k)``. Only the first `r` columns are
            used; missing ones are drawn.
        generator: The source of random numbers, a generator or a seed; None for the seed 0. All
            matrices of a batch share them. A generator on a GPU synchronizes.
        power: `q` of ``"randomized"``, at least 1.
        oversampling: The number of additional columns for ``"randomized"``, dropped in the end.

    Returns:
        Contiguous, in the dtype of the matrix; float32 for bfloat16 or float16.

    Raises:
        ArgumentError: If an argument is out of range, or ``start`` has another shape.

    Differs from the range finder of Halko et al. (2011, https://arxiv.org/abs/0909.4061, algorithm
    4.4): it starts from :math:`\Omega` with `m` rows, not from :math:`A \Omega` with `n`, so
    that it is the ``"subspace"`` method on random columns, with one product less; and columns are
    ordered by the factor R of the last QR, not by another product with :math:`A`.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
        >>> captured(matrix, dominant(matrix, 2, "randomized", power=9))
        tensor(0.9286)
    """
    a = wide(matrix)
    rows = a.shape[-2]
    found: Tensor
    if not 1 <= rank <= rows:
        raise ArgumentError(
            f"dominant(rank={rank}) was given a matrix of {rows} rows. The rank must be at least 1 "
            "and at most their number."
        )
    if power < 1 or oversampling < 0:
        raise ArgumentError(
            f"dominant(power={power}, oversampling={oversampling}) is out of range. The power must "
            "be at least 1, the oversampling at least 0."
        )
    if method == "svd":
        found = torch.linalg.svd(a, full_matrices=False).U[..., :rank]
    elif method == "gram":
        found = _gram(a, rank)
    elif method == "subspace_whole":
        found, _ = _follow(a, _resized(a, start, rank, generator), generator)
    elif method == "subspace":
        found = _follow_folded(a, _resized(a, start, rank, generator), generator)
    elif method == "randomized":
        columns = min(rank + oversampling, rows)
        found = _randomized(a, _normal(a, columns, generator), rank, power)
    else:
        raise ArgumentError(
            f"dominant(method={method!r}) is unknown. Pass one of {', '.join(get_args(Method))}."
        )
    if found.shape[-1] < rank:
        found = _completed(found, rank, generator)
    # A slice would keep the whole tensor alive.
    return found.clone(memory_format=torch.contiguous_format)


def orthonormalize(y: Tensor) -> Tensor:
    r"""Returns orthonormal columns that span the columns of a matrix, one for one.

    :math:`Q` of :math:`Y = Q R`, shape ``(..., m, r)``, with an upper triangular :math:`R` whose
    diagonal is at least 0, by Householder reflections: the first `k` columns of :math:`Q` span
    those of :math:`Y`, and :math:`Q^H Q = I` to rounding for every :math:`Y`, zero columns, equal
    ones and columns of widely different norms included. float32 for bfloat16 or float16.

    Cost: :math:`4mr^2` operations. Cholesky factors of :math:`Y^H Y` need fewer, but in float32
    they break down at a ratio of the singular values of 1e4, which one multiplication with
    :math:`A A^H` of a real gradient exceeds; and on a CPU they take as long, or 1.5 to 4 times as
    long if repaired by a random sketch or by float64, see ``benchmarks/refresh.py``.

    Example:
        >>> orthonormalize(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).abs()
        tensor([[0.6000, 0.8000],
                [0.8000, 0.6000]])
    """
    if y.shape[-1] > y.shape[-2]:
        raise ArgumentError(
            f"orthonormalize was given {y.shape[-1]} columns of length {y.shape[-2]}. At most "
            f"{y.shape[-2]} of these can be orthonormal. Pass fewer columns."
        )
    return orthonormal_columns(_scaled(wide(y)))


def orthonormal_columns(y: Tensor) -> Tensor:
    """Returns `orthonormalize` for columns whose squares neither overflow nor underflow."""
    return _orthonormal(y, y.shape[-1])[0]


def captured(matrix: Tensor, basis: Tensor) -> Tensor:
    r"""Returns the fraction of a matrix's squared norm that an orthonormal basis captures.

    :math:`\lVert P^H A \rVert_F^2 / \lVert A \rVert_F^2`, 0 to 1 up to rounding; 1 for a zero
    matrix. For a batch, that of each.
    """
    a = _scaled(wide(matrix))
    whole = _square(a)
    inside = _square(basis.to(a.dtype).mH @ a)
    part: Tensor = torch.where(whole > 0, inside / whole, 1)
    return part


def _gram(a: Tensor, rank: int) -> Tensor:
    a = _scaled(a)
    if a.shape[-2] <= a.shape[-1]:
        left: Tensor = torch.linalg.eigh(a @ a.mH).eigenvectors[..., -rank:].flip(-1)
        return left
    right = torch.linalg.eigh(a.mH @ a).eigenvectors[..., -rank:].flip(-1)
    return orthonormalize(a @ right)


def _follow(a: Tensor, start: Tensor, source: Source, probes: int = 0) -> tuple[Tensor, Tensor]:
    """Returns a basis, and the fraction of the squared norm of random sums outside of it."""
    eps = torch.finfo(a.dtype).eps
    rows, rank = start.shape[-2:]
    # Written for the transposes, which makes y column-major, as LAPACK requires.
    turned = start.mH.clone(memory_format=torch.contiguous_format)  # (r, m)
    count = min(STIRRED, rank)
    # Each row is the previous one, shifted by one: drawing all of them is slow.
    signs = _signs(rows + count - 1, a, source).unfold(0, rows, 1)  # (count, m)
    stirred = torch.add(turned[..., -count:, :], signs, alpha=(eps / rows) ** 0.5)
    z = _scaled(torch.cat([turned[..., :-count, :] @ a, stirred @ a], -2))  # (r, n)
    if probes:
        sums = _random((probes, a.shape[-1]), a, source)
        z = torch.cat([z, sums.expand(*z.shape[:-2], *sums.shape)], -2)
    y = _scaled(z @ a.mH)  # (r + probes, m)
    # A shift of a a^H below the rounding error: without a dominant direction, as for a zero a, the
    # basis stays.
    y[..., :rank, :].add_(turned, alpha=eps)
    q, r = _orthonormal(y.mH, rank)
    inside, outside = _square(r[..., :rank, rank:]), _square(r[..., rank:, rank:].triu())
    return q, outside / (inside + outside).clamp(min=torch.finfo(inside.dtype).tiny)


def _follow_folded(a: Tensor, start: Tensor, source: Source) -> Tensor:
    (rows, rank), columns = start.shape[-2:], a.shape[-1]
    width = rank + FOLD_MORE
    if not (a.is_cpu and width < columns <= FOLD_BELOW * rank):
        return _follow(a, start, source)[0]
    q, outside = _follow(_folded(a, width, source), start, source, min(PROBES, rows - rank))
    # The residual has the same norm in each dimension of the sums, of which the basis spans all but
    # FOLD_MORE: so only this fraction is visible.
    poor = outside > FOLD_LOSS * FOLD_MORE / width
    if bool(poor.any()):
        q = torch.where(poor[..., None, None], _follow(a, q, source)[0], q)
    return q


def _folded(a: Tensor, width: int, source: Source) -> Tensor:
    """Returns a matrix times a random one: sums of columns with random signs."""
    first, *others = a.split(width, -1)
    signs = _signs(a.shape[-1] - width, a, source).split(width)
    folded: Tensor = first.clone()
    for block, turns in zip(others, signs, strict=True):
        folded[..., : len(turns)].addcmul_(block, turns)
    return folded


def _randomized(a: Tensor, start: Tensor, rank: int, power: int) -> Tensor:
    z = _scaled(start.mH @ a)
    for _ in range(power - 1):
        z = _scaled(orthonormalize((z @ a.mH).mH).mH @ a)
    if start.shape[-1] == rank:
        return orthonormalize((z @ a.mH).mH)
    right, _ = _qr(z.mH)
    q, r = _qr(_scaled(a @ right))  # a is about q r right^H
    found: Tensor = q @ torch.linalg.eigh(r @ r.mH).eigenvectors[..., -rank:].flip(-1)
    return found


def _qr(y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the reduced QR whose R has a positive diagonal."""
    q, r = torch.linalg.qr(y)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(diagonal == 0, 1, diagonal.sgn())
    return q * signs.unsqueeze(-2), r * signs.conj().unsqueeze(-1)


def _orthonormal(y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the first columns of Q as in `_qr`, and a matrix whose upper triangle is R.

    The signs of Q are those for a positive diagonal of R; the signs of R are unchanged.
    """
    reflections, scales = torch.geqrf(y)
    signs = reflections.diagonal(dim1=-2, dim2=-1)[..., :rank].sgn()
    signs = torch.where(signs == 0, 1, signs)
    q: Tensor = torch.linalg.householder_product(reflections[..., :rank], scales[..., :rank])
    q.mul_(signs.unsqueeze(-2))
    return q, reflections


def size_of(x: Tensor) -> Tensor:
    """Returns the largest entries of matrices; division by these avoids overflow of products."""
    largest: Tensor = x.abs().amax((-2, -1), keepdim=True)
    return largest.clamp_(min=torch.finfo(x.dtype).tiny)


def _scaled(x: Tensor) -> Tensor:
    return x / size_of(x)


def _random(shape: tuple[int, ...], like: Tensor, source: Source) -> Tensor:
    """Returns normal numbers; one set for a whole batch."""
    if isinstance(source, torch.Generator):
        # A generator only draws the key, so it may be on any device.
        source = int(torch.randint(1 << 62, (), generator=source, device=source.device))
    return gaussian(0 if source is None else source, shape, like.dtype, like.device)


def _signs(count: int, like: Tensor, source: Source) -> Tensor:
    """Returns numbers of absolute value 1."""
    return _random((count,), like, source).sgn_()


def _normal(a: Tensor, columns: int, source: Source) -> Tensor:
    """Returns Gaussian columns for a matrix, of about unit length."""
    drawn = _random((a.shape[-2], columns), a, source).mul_(a.shape[-2] ** -0.5)
    return drawn.expand(*a.shape[:-1], columns)


def _resized(a: Tensor, start: Tensor | None, rank: int, source: Source) -> Tensor:
    """Returns `rank` initial columns: the given ones, truncated or completed by random ones."""
    if start is None:
        return _normal(a, rank, source)
    if start.shape[:-1] != a.shape[:-1]:
        raise ArgumentError(
            f"dominant(start=...) was given columns of shape {tuple(start.shape)} for a matrix of "
            f"shape {tuple(a.shape)}. All dimensions but the last must be equal. Pass the basis of "
            "a matrix of this shape, or None."
        )
    start = start.to(a.dtype)[..., :rank]
    missing = rank - start.shape[-1]
    return torch.cat([start, _normal(a, missing, source)], -1) if missing else start


def _completed(columns: Tensor, rank: int, source: Source) -> Tensor:
    """Returns orthonormal columns, completed to `rank` by random ones."""
    found = columns.shape[-1]
    q, _ = _qr(torch.cat([columns, _normal(columns, rank - found, source)], -1))
    return torch.cat([columns, q[..., found:]], -1)


def _square(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm.square()
