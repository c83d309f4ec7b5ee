"""Wavelet transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import require
from projcore_spectral._spectral import Spectral

Dims = tuple[int, ...]


class _Pyramid(Spectral):
    """A multi-level transform with one filter, along each dimension."""

    def __init__(
        self,
        modules: Any,
        smooth: Sequence[float],
        levels: int | None,
        dims: Sequence[int] | None,
        keep: float | None,
        project_update: bool,
        project_params: bool,
        project_grad: bool,
    ) -> None:
        super().__init__(modules, dims, keep, project_update, project_params, project_grad)
        if levels is not None:
            require(self, "levels", levels, minimum=1)
        self.levels = levels
        self.smooth = tuple(smooth)

    def forward(self, x: Tensor, dims: Dims, extra: Sequence[Any]) -> Tensor:
        for dim in dims:
            x = pyramid(x, self.smooth, dim, self.levels)
        return x

    def backward(self, z: Tensor, dims: Dims, lengths: Dims, extra: Sequence[Any]) -> Tensor:
        for dim in dims:
            z = from_pyramid(z, self.smooth, dim, self.levels)
        return z


class Haar(_Pyramid):
    r"""Runs modules on the Haar wavelet transform of each tensor.

    Along each of ``dims``, one level computes sums and differences of adjacent elements,

    .. math:: a_j = (x_{2j} + x_{2j+1}) / \sqrt2, \qquad d_j = (x_{2j} - x_{2j+1}) / \sqrt2,

    and the next level transforms :math:`a`. If the length is odd, the last element is appended to
    :math:`a` unchanged, so any length is lossless and orthonormal. Each tensor has the same shape
    inside; along each dimension it holds the last :math:`a`, then :math:`d` from coarse to fine.

    Args:
        modules: The modules to run on the coefficients.
        levels: The number of levels; None for all.
        dims: The dimensions to transform, None for all. Tensors that lack one pass unchanged.
        keep: Keep only the coarsest coefficients, along each dimension: an int is a count, a float
            a fraction. The other coefficients do not change: their updates are dropped.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If ``levels``, ``keep`` or ``dims`` is out of range.

    Cost: O(N) for N elements, each way. bfloat16 and float16 are transformed in float32.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Haar([Adam()]), LR(1e-2))

    References:
        Haar, 1910, https://doi.org/10.1007/BF01456326; the pyramid: Mallat, 1989,
        https://doi.org/10.1109/34.192463. With ``keep`` it is the space, but not the method, of
        Wen et al., 2025, https://arxiv.org/abs/2501.07237, which also uses the differences.
    """

    def __init__(
        self,
        modules: Any,
        levels: int | None = None,
        dims: Sequence[int] | None = None,
        keep: float | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        flags = (project_update, project_params, project_grad)
        super().__init__(modules, daubechies(1), levels, dims, keep, *flags)


class Daubechies(_Pyramid):
    r"""Runs modules on the Daubechies wavelet transform of each tensor.

    Like `Haar`, with longer filters: along each of ``dims``, with indices modulo the length,

    .. math:: a_j = \sum_t h_t x_{2j+t-p+1}, \qquad d_j = \sum_t (-1)^t h_{2p-1-t} x_{2j+t-p+1},

    where :math:`h`, of :math:`2p` numbers, is the filter whose :math:`d` is zero on polynomials of
    degree below :math:`p`, the order. Order 1 is Haar's. For even lengths it is the transform of
    PyWavelets with ``mode="periodization"``. If the length is odd, the last element is appended to
    :math:`a` unchanged. There are further levels as long as the length is at least :math:`2p`;
    shorter dimensions are not transformed.

    Args:
        modules: The modules to run on the coefficients.
        order: `p`, from 1 to 8: half the filter's length.
        levels: The number of levels; None for all.
        dims: The dimensions to transform, None for all. Tensors that lack one pass unchanged.
        keep: Keep only the coarsest coefficients, along each dimension: an int is a count, a float
            a fraction. The other coefficients do not change: their updates are dropped.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If ``order``, ``levels``, ``keep`` or ``dims`` is out of range.

    Cost: O(p N) for N elements, each way. bfloat16 and float16 are transformed in float32.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(16, 8)
        >>> optimizer = Optimizer(model.parameters(), Daubechies([Adam()], order=4), LR(1e-2))

    References:
        Daubechies, 1988, https://doi.org/10.1002/cpa.3160410705.
    """

    def __init__(
        self,
        modules: Any,
        order: int = 2,
        levels: int | None = None,
        dims: Sequence[int] | None = None,
        keep: float | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require(self, "order", order, minimum=1, maximum=8)
        self.order = order
        flags = (project_update, project_params, project_grad)
        super().__init__(modules, daubechies(int(order)), levels, dims, keep, *flags)


def daubechies(order: int) -> list[float]:
    """Returns the low-pass filter of an order `p`, which has `2p` coefficients.

    Its z-transform is a multiple of ``(1 + z)**p`` and of ``z - r`` for each of the p - 1 roots r
    inside the unit circle of the polynomial that makes its shifts by two orthonormal.
    """
    binomials = [math.comb(order - 1 + k, k) for k in range(order)]
    roots: list[complex] = []
    if order > 1:  # the eigenvalues of the companion matrix are the roots in y
        companion = torch.diag(torch.ones(order - 2, dtype=torch.float64, device="cpu"), -1)
        last = torch.tensor(binomials[:-1], dtype=torch.float64, device="cpu")
        companion[:, -1] = -last / binomials[-1]
        for y in torch.linalg.eigvals(companion).tolist():
            root = 1 - 2 * y + 2 * (y * (y - 1)) ** 0.5  # y = (2 - z - 1/z) / 4
            roots.append(root if abs(root) < 1 else 1 / root)
    filter_: list[complex] = [1.0]
    for root in [-1.0] * order + roots:
        filter_ = [
            after - root * before
            for after, before in zip([0.0, *filter_], [*filter_, 0.0], strict=True)
        ]
    total = sum(complex(number).real for number in filter_)
    return [complex(number).real * math.sqrt(2) / total for number in reversed(filter_)]


def pyramid(x: Tensor, smooth: Sequence[float], dim: int, levels: int | None) -> Tensor:
    """Returns the coefficients along a dimension, from coarse to fine."""
    details: list[Tensor] = []
    while x.shape[dim] >= len(smooth) and len(details) != levels:
        length = x.shape[dim]
        pairs = x.narrow(dim, 0, length // 2 * 2).unflatten(dim, (length // 2, 2))
        even, odd = pairs.unbind(dim + 1)
        coarse, fine = _level(even, odd, smooth, dim)
        x = torch.cat([coarse, x.narrow(dim, length - 1, 1)], dim) if length % 2 else coarse
        details.append(fine)
    return torch.cat([x, *reversed(details)], dim) if details else x


def from_pyramid(z: Tensor, smooth: Sequence[float], dim: int, levels: int | None) -> Tensor:
    """Returns the inverse of `pyramid`."""
    lengths: list[int] = []
    length = z.shape[dim]
    while length >= len(smooth) and len(lengths) != levels:
        lengths.append(length)
        length = (length + 1) // 2
    x = z.narrow(dim, 0, length)
    for length in reversed(lengths):
        half = length // 2
        fine = z.narrow(dim, length - half, half)
        pair = _level_back(x.narrow(dim, 0, half), fine, smooth, dim)
        whole = torch.stack(pair, dim + 1).flatten(dim, dim + 1)
        x = torch.cat([whole, x.narrow(dim, half, 1)], dim) if length % 2 else whole
    return x


def _level(even: Tensor, odd: Tensor, smooth: Sequence[float], dim: int) -> tuple[Tensor, Tensor]:
    coarse = fine = None
    for parity, shift, low, high in _taps(smooth):
        moved = _rolled((even, odd)[parity], -shift, dim)
        coarse = moved * low if coarse is None else coarse.add(moved, alpha=low)
        fine = moved * high if fine is None else fine.add(moved, alpha=high)
    assert coarse is not None
    assert fine is not None
    return coarse, fine


def _level_back(
    coarse: Tensor, fine: Tensor, smooth: Sequence[float], dim: int
) -> tuple[Tensor, Tensor]:
    pair: list[Tensor | None] = [None, None]
    for parity, shift, low, high in _taps(smooth):
        moved = _rolled((coarse * low).add(fine, alpha=high), shift, dim)
        before = pair[parity]
        pair[parity] = moved if before is None else before + moved
    even, odd = pair
    assert even is not None
    assert odd is not None
    return even, odd


def _taps(smooth: Sequence[float]) -> list[tuple[int, int, float, float]]:
    """Returns for each filter coefficient its index in a pair, its offset, and both values."""
    first = len(smooth) // 2 - 1
    rough = [(-1) ** t * number for t, number in enumerate(reversed(smooth))]
    return [
        ((t - first) % 2, (t - first) // 2, low, high)
        for t, (low, high) in enumerate(zip(smooth, rough, strict=True))
    ]


def _rolled(x: Tensor, shift: int, dim: int) -> Tensor:
    return x.roll(shift, dim) if shift else x
