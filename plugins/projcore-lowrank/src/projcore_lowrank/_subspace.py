"""Orthonormal bases of dominant subspaces: pure functions of matrices, alone or in batches."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from projcore.errors import ArgumentError
from projcore_lowrank._seeded import gaussian

Method = Literal["svd", "gram", "randomized", "subspace"]
Source = torch.Generator | int | None


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
    and :math:`P^H P = I` to rounding whatever :math:`A` is: of lower rank, zero, or of fewer than
    `r` columns. To find it,

    - ``"svd"`` takes the first `r` left singular vectors, largest value first;
    - ``"gram"`` takes the eigenvectors of the smaller of :math:`A A^H` and :math:`A^H A`, in the
      same order. Directions of singular values below :math:`\sqrt\epsilon \sigma_1` are rough;
    - ``"randomized"`` takes a basis of :math:`(A A^H)^q \Omega`, :math:`\Omega` Gaussian;
    - ``"subspace"`` takes a basis of :math:`A A^H P_0`, :math:`P_0` the basis of before. The
      columns keep their order and their signs, as far as :math:`A` allows, and what it does not
      reach at all, as when it is zero, stays as in :math:`P_0`. Without ``start`` it is
      ``"randomized"``.

    The last two do not order the columns by singular value, except with ``oversampling``.

    Args:
        matrix: Real or complex; the entries are finite, which is not checked.
        rank: `r`, 1 to `m`.
        method: How.
        start: :math:`P_0` of ``"subspace"``, shape ``(..., m, k)``, on the same device. Of more
            than `r` columns the first `r` are used; missing ones are drawn.
        generator: Where random numbers come from, a generator or a seed; None for the seed 0. All
            matrices of a batch share them. The global generator is not used.
        power: `q` of ``"randomized"``, at least 1.
        oversampling: How many more columns ``"randomized"`` draws, to drop the least in the end.

    Returns:
        Contiguous, in the dtype of the matrix; float32 of a bfloat16 or float16 one.

    Raises:
        ArgumentError: If ``rank``, ``method``, ``power``, ``oversampling`` or the shape of
            ``start`` is out of range.

    Cost: ``"subspace"`` :math:`4mnr + 4mr^2` operations, ``"randomized"`` as much with ``power=1``
    and :math:`4mnr + 4(m + n)r^2` more for each further one; both read :math:`A` twice per power.
    ``"gram"`` is O(mn s + s³) with s = min(m, n), and ``"svd"`` the same with a far larger
    constant. ``benchmarks/refresh.py`` times them.

    Differs from the range finder of Halko et al.: it starts from :math:`\Omega` of `m` rows, not
    from :math:`A \Omega` with one of `n`, so that it is the ``"subspace"`` method on random
    columns, and a product less; and ordering takes the factor R of the last QR, not a product with
    :math:`A` more.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
        >>> dominant(matrix, 2, "svd").abs()
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.]])
        >>> captured(matrix, dominant(matrix, 2, "randomized", power=9))
        tensor(0.9286)

    References:
        Halko, Martinsson, Tropp, 2011, Finding structure with randomness,
        https://arxiv.org/abs/0909.4061 (algorithm 4.4)
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (``"svd"`` in GaLore)
        Liang et al., 2024, https://arxiv.org/abs/2408.12857 (a basis that follows the last one)
    """
    a = matrix.to(_working(matrix.dtype))
    rows = a.shape[-2]
    if not 1 <= rank <= rows:
        raise ArgumentError(
            f"dominant(rank={rank}) was given a matrix of {rows} rows. The rank is at least 1 and "
            f"at most their number. Pass one up to {rows}."
        )
    if power < 1 or oversampling < 0:
        raise ArgumentError(
            f"dominant(power={power}, oversampling={oversampling}) is out of range. The power is "
            "at least 1, the oversampling at least 0. Pass such."
        )
    if method == "svd":
        found = torch.linalg.svd(a, full_matrices=False).U[..., :rank]
    elif method == "gram":
        found = _gram(a, rank)
    elif method == "randomized" or (method == "subspace" and start is None):
        columns = min(rank + oversampling, rows)
        found = _randomized(a, _normal(a, columns, generator), rank, power)
    elif method == "subspace" and start is not None:
        found = _follow(a, _resized(a, start, rank, generator))
    else:
        raise ArgumentError(
            f"dominant(method={method!r}) is unknown. It is one of {', '.join(get_args(Method))}. "
            "Pass one of these."
        )
    if found.shape[-1] < rank:
        found = _completed(found, rank, generator)
    # A slice would keep all that it was cut from.
    return found.clone(memory_format=torch.contiguous_format)


def orthonormalize(y: Tensor) -> Tensor:
    r"""Returns orthonormal columns that span the columns of a matrix, one for one.

    :math:`Q` of :math:`Y = Q R` with an upper triangular :math:`R` whose diagonal is at least 0, by
    Householder reflections: the first `k` columns of :math:`Q` span those of :math:`Y`, and
    :math:`Q^H Q = I` to rounding for every :math:`Y`, zero columns, equal ones and columns of
    widely different lengths included.

    Args:
        y: Shape ``(..., m, r)``, :math:`r \le m`.

    Returns:
        The same shape; float32 of bfloat16 or float16.

    Raises:
        ArgumentError: If there are more columns than rows.

    Cost: :math:`4mr^2` operations. Cholesky factors of :math:`Y^H Y` need fewer, but in float32
    they break down at a ratio of the singular values of 1e4, which one multiplication with
    :math:`A A^H` of a real gradient exceeds; repaired, by float64 or by a random sketch first,
    they were no faster on a CPU, see ``benchmarks/refresh.py``.

    Example:
        >>> orthonormalize(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).abs()
        tensor([[0.6000, 0.8000],
                [0.8000, 0.6000]])

    References:
        Golub, Van Loan, 2013, Matrix computations (algorithm 5.2.1)
        Fukaya et al., 2020, https://doi.org/10.1137/18M1218212 (shifted Cholesky QR)
    """
    if y.shape[-1] > y.shape[-2]:
        raise ArgumentError(
            f"orthonormalize was given {y.shape[-1]} columns of length {y.shape[-2]}. No more than "
            f"{y.shape[-2]} of these can be orthonormal. Pass fewer columns."
        )
    q, _ = _qr(y.to(_working(y.dtype)))
    return q


def captured(matrix: Tensor, basis: Tensor) -> Tensor:
    r"""Returns the part of a matrix's squared norm that a basis holds.

    .. math:: \lVert P^H A \rVert_F^2 / \lVert A \rVert_F^2

    Args:
        matrix: :math:`A`, shape ``(..., m, n)``.
        basis: :math:`P`, orthonormal columns, shape ``(..., m, r)``.

    Returns:
        Shape ``(...)``, real, 0 to 1 up to rounding; 1 of a zero matrix.

    Cost: `2mnr` operations.

    Example:
        >>> captured(torch.eye(4), torch.eye(4)[:, :1])
        tensor(0.2500)
    """
    a = matrix.to(_working(matrix.dtype))
    a = _scaled(a)
    whole = _square(a)
    inside = _square(basis.to(a.dtype).mH @ a)
    return torch.where(whole > 0, inside / whole, torch.ones_like(whole))


def _gram(a: Tensor, rank: int) -> Tensor:
    a = _scaled(a)
    if a.shape[-2] <= a.shape[-1]:
        return torch.linalg.eigh(a @ a.mH).eigenvectors[..., -rank:].flip(-1)
    right = torch.linalg.eigh(a.mH @ a).eigenvectors[..., -rank:].flip(-1)
    return orthonormalize(a @ right)


def _follow(a: Tensor, start: Tensor) -> Tensor:
    y = _scaled(a @ _scaled(a.mH @ start))
    # As if of a a^H plus the identity times what rounding loses anyway: where a is zero, so that
    # nothing leads the basis, it stays.
    return orthonormalize(y + torch.finfo(y.dtype).eps * start)


def _randomized(a: Tensor, start: Tensor, rank: int, power: int) -> Tensor:
    z = _scaled(a.mH @ start)
    for _ in range(power - 1):
        z = _scaled(a.mH @ orthonormalize(a @ z))
    if start.shape[-1] == rank:
        return orthonormalize(a @ z)
    right, _ = _qr(z)
    q, r = _qr(a @ right)  # a is about q r right^H
    return q @ torch.linalg.eigh(r @ r.mH).eigenvectors[..., -rank:].flip(-1)


def _qr(y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the reduced QR of a matrix scaled to entries of at most 1, R's diagonal positive."""
    q, r = torch.linalg.qr(_scaled(y))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal.sgn())
    return q * signs.unsqueeze(-2), r * signs.conj().unsqueeze(-1)


def _scaled(x: Tensor) -> Tensor:
    """Returns matrices divided by their largest entries: products neither overflow nor vanish."""
    largest = x.abs().amax((-2, -1), keepdim=True)
    return x / largest.clamp(min=torch.finfo(x.dtype).tiny)


def _normal(a: Tensor, columns: int, source: Source) -> Tensor:
    """Returns Gaussian columns as long as those of a matrix; one set for a whole batch."""
    shape = (a.shape[-2], columns)
    if not isinstance(source, torch.Generator):
        return gaussian(0 if source is None else source, shape, a.dtype, a.device)
    return torch.randn(shape, generator=source, device=source.device, dtype=a.dtype).to(a.device)


def _resized(a: Tensor, start: Tensor, rank: int, source: Source) -> Tensor:
    if start.shape[:-1] != a.shape[:-1]:
        raise ArgumentError(
            f"dominant(start=...) was given columns of shape {tuple(start.shape)} for a matrix of "
            f"shape {tuple(a.shape)}. All sizes but the last are equal. Pass the basis of a matrix "
            "of this shape, or None."
        )
    start = start.to(a.dtype)[..., :rank]
    missing = rank - start.shape[-1]
    if not missing:
        return start
    drawn = _normal(a, missing, source) / a.shape[-2] ** 0.5
    return torch.cat([start, drawn.expand(*a.shape[:-1], missing)], -1)


def _completed(columns: Tensor, rank: int, source: Source) -> Tensor:
    """Returns orthonormal columns with more of these."""
    found = columns.shape[-1]
    drawn = _normal(columns, rank - found, source)
    q, _ = _qr(torch.cat([columns, drawn.expand(*columns.shape[:-1], rank - found)], -1))
    return torch.cat([columns, q[..., found:]], -1)


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1)).square()


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
