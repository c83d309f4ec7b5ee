"""The discrete cosine transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore_spectral._spectral import Spectral, along
from projcore_spectral._tables import table
from projcore_spectral.fourier import negated

Dims = tuple[int, ...]

# Up to this length a product with the matrix is at least as fast as the FFT and its reorderings.
# Measured on one thread, in stacks of 2**18 elements: both take equal time at about 110 (both
# dimensions of float32 matrices), 150 and 190 (only the last or the first), 50 (float64).
MATRIX = 96


class DCT(Spectral):
    r"""Runs modules on the discrete cosine transform (II, orthonormal) of each tensor.

    Along each of ``dims``, of length :math:`n`,

    .. math:: z_k = c_k \sum_i x_i \cos\frac{\pi (2i + 1) k}{2n}, \qquad
        c_0 = \sqrt{1/n}, \quad c_k = \sqrt{2/n},

    with frequencies :math:`k/2n` in ascending order. Each tensor has the same shape inside.

    Args:
        modules: The modules to run on the coefficients.
        dims: The dimensions to transform, None for all. Tensors that lack one pass unchanged.
        keep: Keep only the lowest frequencies (a low pass), along each dimension: an int is a
            count, a float a fraction. The other coefficients do not change: their updates are
            dropped.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If ``keep`` or ``dims`` is out of range.

    Cost: O(N log N) for N elements, each way: one real FFT over all long dimensions, of a reordered
    tensor, and a rotation for each; for dimensions of at most 96 a matrix product, where that is
    faster. The tables for lengths up to 65 536 are cached. bfloat16 and float16 are transformed in
    float32. Not compiled, because of complex intermediates.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), DCT([Adam()]), LR(1e-2))

    References:
        Makhoul, 1980, A fast cosine transform in one and two dimensions,
        https://doi.org/10.1109/TASSP.1980.1163351. torchzero's `DCTProjection` is not normalised
        unless told to.
    """

    traceable = False

    def __init__(
        self,
        modules: Any,
        dims: Sequence[int] | None = None,
        keep: float | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, dims, keep, project_update, project_params, project_grad)

    def forward(self, x: Tensor, dims: Dims, extra: Sequence[Any]) -> Tensor:
        return dct(x, dims)

    def backward(self, z: Tensor, dims: Dims, lengths: Dims, extra: Sequence[Any]) -> Tensor:
        return inverse_dct(z, dims)


def dct(x: Tensor, dims: Dims) -> Tensor:
    """Returns the orthonormal DCT-II along dimensions."""
    long = tuple(dim for dim in dims if x.shape[dim] > MATRIX)
    if long:
        x = dct_by_fft(x, long)
    for dim in dims:
        if 1 < x.shape[dim] <= MATRIX:
            x = along(x, dct_matrix(x.shape[dim], x.dtype, x.device), dim)
    return x


def inverse_dct(z: Tensor, dims: Dims) -> Tensor:
    """Returns the inverse of `dct`, which is its transpose."""
    long = tuple(dim for dim in dims if z.shape[dim] > MATRIX)
    if long:
        z = inverse_dct_by_fft(z, long)
    for dim in dims:
        if 1 < z.shape[dim] <= MATRIX:
            z = along(z, dct_matrix(z.shape[dim], z.dtype, z.device).t(), dim)
    return z


def dct_by_fft(x: Tensor, dims: Dims) -> Tensor:
    r"""Returns the orthonormal DCT-II along dimensions, by one real FFT.

    With the elements of :math:`x` in the order 0, 1, 3, 5, ..., 4, 2 and :math:`V` its FFT,
    :math:`\sum_i x_i \cos\frac{\pi (2i+1) k}{2n} = \mathrm{Re}(w_k V_k)`, with
    :math:`w_k = e^{i \pi k / 2n}`; at :math:`n - k` it is :math:`\mathrm{Im}(w_k V_k)`. Along the
    dimensions before the last, where :math:`V` is not the FFT of real numbers, "the real part" is
    :math:`(w_k V_k + \bar w_k V_{-k}) / 2`.
    """
    *others, last = dims
    length = x.shape[last]
    for dim in dims:
        x = _take(x, dim, _zigzag(x.shape[dim], None, x.device))
    spectrum = torch.fft.rfftn(x, dim=dims)
    for dim in others:
        turn, back, _ = _turns(x.shape[dim], spectrum.dtype, x.device)
        mirrored = spectrum.index_select(dim, negated(x.shape[dim], None, x.device))
        spectrum.mul_(_at(turn, dim, x.ndim)).addcmul_(mirrored, _at(back, dim, x.ndim))
    _, _, turn = _turns(length, spectrum.dtype, x.device)
    spectrum.mul_(_at(turn, last, x.ndim))
    return _take(_pairs(spectrum, last), last, _ascending(length, None, x.device))


def inverse_dct_by_fft(z: Tensor, dims: Dims) -> Tensor:
    r"""Returns the inverse of `dct_by_fft`, by a real FFT, too; an inverse one is slower.

    The transform is :math:`R H Z`, all orthogonal: :math:`Z` is the order above, :math:`H` the
    Hartley transform, with elements :math:`(\cos\theta + \sin\theta) / \sqrt n` for
    :math:`\theta = 2 \pi j k / n`, and :math:`R` a rotation of the elements :math:`k` and
    :math:`n - k`. So this is :math:`Z^\top H R^\top`. With :math:`F` for the FFT, :math:`H` is the
    real part of :math:`(1 + i) F_k`, and its imaginary part at :math:`-k`; along the dimensions
    before the last it is :math:`\frac{1 - i}{2} (F_{-k} + i F_k)`.
    """
    *others, last = dims
    for dim in dims:
        z = _rotate_back(z, dim)
    spectrum = torch.fft.rfftn(z, dim=dims, norm="ortho")
    factor = 1 + 1j
    for dim in others:
        mirrored = spectrum.index_select(dim, negated(z.shape[dim], None, z.device))
        spectrum = mirrored.add_(spectrum, alpha=1j)
        factor *= (1 - 1j) / 2
    if factor != 1:
        spectrum.mul_(factor)
    # The pairs 0, -0, 1, -1, ... are in the order of the elements, except for a second 0.
    x = _pairs(spectrum, last).narrow(last, 1, z.shape[last])
    for dim in others:
        x = x.index_select(dim, _zigzag_back(x.shape[dim], None, x.device))
    return x.contiguous()


def _pairs(spectrum: Tensor, dim: int) -> Tensor:
    """Returns real and imaginary parts in turn along a dimension."""
    # For the last dimension, this copies nothing.
    return torch.view_as_real(spectrum).movedim(-1, dim + 1).flatten(dim, dim + 1)


def _rotate_back(x: Tensor, dim: int) -> Tensor:
    r"""Rotates each pair of elements k and n - k by :math:`\pi / 4 - \pi k / 2n`."""
    rest = x.shape[dim] - 1
    cosines, sines = _rotation(rest + 1, x.dtype, x.device)
    mirrored = x.narrow(dim, 1, rest).flip(dim)
    x = x * _at(cosines, dim, x.ndim)
    x.narrow(dim, 1, rest).addcmul_(mirrored, _at(sines, dim, x.ndim))
    return x


def _take(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Returns the elements at these indices along a dimension, by the faster of two ways."""
    if dim == x.ndim - 1:
        return x.gather(dim, index.expand(*x.shape[:-1], -1))
    return x.index_select(dim, index)


def _at(vector: Tensor, dim: int, ndim: int) -> Tensor:
    """Reshapes a vector so that it broadcasts along a dimension."""
    return vector.view(-1, *[1] * (ndim - 1 - dim))


@table
def dct_matrix(length: int) -> Tensor:
    """Returns the matrix of the orthonormal DCT-II."""
    k = torch.arange(length, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / (2 * length) * torch.outer(k, 2 * k + 1))
    return matrix * _scales(length)[:, None]


def _scales(length: int) -> Tensor:
    scales = torch.full((length,), math.sqrt(2 / length), dtype=torch.float64, device="cpu")
    scales[0] = math.sqrt(1 / length)
    return scales


@table
def _turns(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the factors of a spectrum, of its mirror image, and along the last dimension."""
    k = torch.arange(length, dtype=torch.float64, device="cpu")
    turn = torch.polar(_scales(length), math.pi / (2 * length) * k)
    return turn / 2, turn.conj().resolve_conj() / 2, turn[: length // 2 + 1]


@table
def _rotation(length: int) -> tuple[Tensor, Tensor]:
    """Returns the cosines, from that of 0 on, and the sines except for the first."""
    k = torch.arange(length, dtype=torch.float64, device="cpu")
    angles = math.pi / (2 * length) * k - math.pi / 4
    angles[0] = 0
    return angles.cos(), angles[1:].sin()


@table
def _zigzag(length: int) -> Tensor:
    index = torch.arange(length, device="cpu")
    return torch.cat([index[:1], index[1::2], index[2::2].flip(0)])


@table
def _zigzag_back(length: int) -> Tensor:
    index = torch.arange(length, device="cpu")
    return torch.where(index % 2 == 1, index // 2 + 1, -(index // 2) % length)


@table
def _ascending(length: int) -> Tensor:
    """Returns the index of each of 0, 1, ..., n - 1 in 0, -0, 1, -1, ..."""
    k = torch.arange(length, device="cpu")
    return torch.where(k <= length // 2, 2 * k, 2 * (length - k) + 1)
