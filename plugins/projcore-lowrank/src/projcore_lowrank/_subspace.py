"""Orthonormal bases of dominant subspaces: pure functions of matrices, alone or in batches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from projcore.ops import wide
from projcore_lowrank._seeded import gaussian

Method = Literal["svd", "gram", "randomized", "subspace", "subspace_whole"]

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
    matrix: Tensor, rank: int, method: Method, start: Tensor | None = None, seed: int = 0
) -> Tensor:
    r"""Returns orthonormal columns that span the top left singular subspace of a matrix.

    For a matrix :math:`A` of shape ``(..., m, n)`` the result :math:`P` has shape ``(..., m, r)``,
    and :math:`P^H P = I` up to rounding for every :math:`A`, also of lower rank, zero, or with
    fewer than `r` columns. The method

    - ``"svd"`` is that of `SVD`, ``"gram"`` of `Gram`, largest singular value first;
    - ``"randomized"`` is that of `Randomized`;
    - ``"subspace"`` is that of `SubspaceIteration` from the basis :math:`P_0`. The columns keep
      their order and their signs, as far as :math:`A` allows; a zero :math:`A` keeps :math:`P_0`.
      Where it sums columns, :math:`A S` takes the place of :math:`A`, with a matrix :math:`S` of
      random signs. Accelerators do not, since the decision whether a step with all of :math:`A`
      follows would synchronize;
    - ``"subspace_whole"`` is ``"subspace"`` that never sums columns.

    The last three do not order the columns by singular value. The larger the gap after `r` singular
    values, the more accurate they are: on gradients of transformers all capture 0.999 of the SVD's
    energy; without a gap they capture less. If 0.38 of the energy is outside the best basis,
    768 x 768 with ``rank=256``, a previous basis with 0.85 of the SVD's energy is followed by one
    with 0.92, or with 0.94 by ``"subspace_whole"``, which takes less time there; if 0.013 is
    outside, one with 0.97 by ones with 0.998 and 0.997. ``benchmarks/refresh.py`` times them.

    Args:
        matrix: Real or complex; the entries are finite, which is not checked.
        rank: `r`, 1 to `m`.
        method: The method, as above.
        start: :math:`P_0` of the last two, shape ``(..., m, k)``. Only the first `r` columns are
            used; missing ones are drawn.
        seed: Of the random numbers, which all matrices of a batch share.

    Returns:
        Contiguous, in the dtype of the matrix; float32 for bfloat16 or float16.

    Differs from the range finder of Halko et al. (2011, https://arxiv.org/abs/0909.4061, algorithm
    4.4): it starts from :math:`\Omega` with `m` rows, not from :math:`A \Omega` with `n`, so
    that it is the ``"subspace"`` method on random columns, with one product less.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
        >>> dominant(matrix, 1, "svd").abs()
        tensor([[0.],
                [1.],
                [0.]])
    """
    a = wide(matrix)
    found: Tensor
    if method == "svd":
        found = torch.linalg.svd(a, full_matrices=False).U[..., :rank]
    elif method == "gram":
        found = _gram(a, rank)
    elif method == "randomized":
        found = orthonormalize((_scaled(_normal(a, rank, seed).mH @ a) @ a.mH).mH)
    else:
        first = _normal(a, rank, seed) if start is None else resized(start.to(a.dtype), rank, seed)
        whole = method == "subspace_whole"
        found = _follow(a, first, seed)[0] if whole else _follow_folded(a, first, seed)
    # A slice would keep the whole tensor alive.
    return resized(found, rank, seed).clone(memory_format=torch.contiguous_format)


def resized(basis: Tensor, rank: int, seed: int) -> Tensor:
    """Returns an orthonormal basis with `rank` columns, truncated or completed by random ones."""
    missing = rank - basis.shape[-1]
    if missing <= 0:
        return basis[..., :rank]
    return orthonormalize(torch.cat([basis, _normal(basis, missing, seed)], -1))


def settled(y: Tensor, start: Tensor) -> Tensor:
    """Returns orthonormal columns that span those of ``y``, which may be overwritten.

    Without a dominant direction, the basis ``start`` stays: the shift is below the rounding error.
    """
    return orthonormal_columns(y.div_(size_of(y)).add_(start, alpha=torch.finfo(y.dtype).eps))


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
    return orthonormal_columns(_scaled(wide(y)))


def orthonormal_columns(y: Tensor) -> Tensor:
    """Returns `orthonormalize` for columns whose squares neither overflow nor underflow."""
    return _orthonormal(y, y.shape[-1])[0]


def _gram(a: Tensor, rank: int) -> Tensor:
    a = _scaled(a)
    if a.shape[-2] <= a.shape[-1]:
        left: Tensor = torch.linalg.eigh(a @ a.mH).eigenvectors[..., -rank:].flip(-1)
        return left
    right = torch.linalg.eigh(a.mH @ a).eigenvectors[..., -rank:].flip(-1)
    return orthonormalize(a @ right)


def _follow(a: Tensor, start: Tensor, seed: int, probes: int = 0) -> tuple[Tensor, Tensor]:
    """Returns a basis, and the fraction of the squared norm of random sums outside of it."""
    eps = torch.finfo(a.dtype).eps
    rows, rank = start.shape[-2:]
    # Written for the transposes, which makes y column-major, as LAPACK requires.
    turned = start.mH.clone(memory_format=torch.contiguous_format)  # (r, m)
    count = min(STIRRED, rank)
    # Each row is the previous one, shifted by one: drawing all of them is slow.
    signs = _signs(rows + count - 1, a, seed).unfold(0, rows, 1)  # (count, m)
    stirred = torch.add(turned[..., -count:, :], signs, alpha=(eps / rows) ** 0.5)
    z = _scaled(torch.cat([turned[..., :-count, :] @ a, stirred @ a], -2))  # (r, n)
    if probes:
        sums = gaussian(seed, (probes, a.shape[-1]), a.dtype, a.device)
        z = torch.cat([z, sums.expand(*z.shape[:-2], *sums.shape)], -2)
    y = _scaled(z @ a.mH)  # (r + probes, m)
    # A shift of a a^H below the rounding error: without a dominant direction, as for a zero a, the
    # basis stays.
    y[..., :rank, :].add_(turned, alpha=eps)
    q, r = _orthonormal(y.mH, rank)
    inside, outside = _square(r[..., :rank, rank:]), _square(r[..., rank:, rank:].triu())
    return q, outside / (inside + outside).clamp(min=torch.finfo(inside.dtype).tiny)


def _follow_folded(a: Tensor, start: Tensor, seed: int) -> Tensor:
    (rows, rank), columns = start.shape[-2:], a.shape[-1]
    width = rank + FOLD_MORE
    if not (a.is_cpu and width < columns <= FOLD_BELOW * rank):
        return _follow(a, start, seed)[0]
    q, outside = _follow(_folded(a, width, seed), start, seed, min(PROBES, rows - rank))
    # The residual has the same norm in each dimension of the sums, of which the basis spans all but
    # FOLD_MORE: so only this fraction is visible.
    poor = outside > FOLD_LOSS * FOLD_MORE / width
    if bool(poor.any()):
        q = torch.where(poor[..., None, None], _follow(a, q, seed)[0], q)
    return q


def _folded(a: Tensor, width: int, seed: int) -> Tensor:
    """Returns a matrix times a random one: sums of columns with random signs."""
    first, *others = a.split(width, -1)
    signs = _signs(a.shape[-1] - width, a, seed).split(width)
    folded: Tensor = first.clone()
    for block, turns in zip(others, signs, strict=True):
        folded[..., : len(turns)].addcmul_(block, turns)
    return folded


def _orthonormal(y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the first columns of Q of a QR decomposition, and a matrix whose upper triangle is R.

    The signs of Q are those for a positive diagonal of R; the signs of R are unchanged.
    """
    reflections, scales = torch.geqrf(y)
    signs = reflections.diagonal(dim1=-2, dim2=-1)[..., :rank].sgn()
    signs.masked_fill_(signs == 0, 1)
    q: Tensor = torch.linalg.householder_product(reflections[..., :rank], scales[..., :rank])
    q.mul_(signs.unsqueeze(-2))
    return q, reflections


def size_of(x: Tensor) -> Tensor:
    """Returns the largest entries of matrices; division by these avoids overflow of products."""
    largest: Tensor = x.abs().amax((-2, -1), keepdim=True)
    return largest.clamp_(min=torch.finfo(x.dtype).tiny)


def _scaled(x: Tensor) -> Tensor:
    return x / size_of(x)


def _signs(count: int, like: Tensor, seed: int) -> Tensor:
    """Returns numbers of absolute value 1."""
    return gaussian(seed, (count,), like.dtype, like.device).sgn_()


def _normal(like: Tensor, columns: int, seed: int) -> Tensor:
    """Returns Gaussian columns for a matrix, of about unit length; one set for a whole batch."""
    drawn = gaussian(seed, (like.shape[-2], columns), like.dtype, like.device)
    return drawn.mul_(like.shape[-2] ** -0.5).expand(*like.shape[:-1], columns)


def _square(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm.square()
