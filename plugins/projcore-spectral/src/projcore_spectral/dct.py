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

# Below, a product with the matrix takes less time than the FFT and what is around it (measured,
# one thread, float32).
MATRIX = 96


class DCT(Spectral):
    r"""Runs modules on the discrete cosine transform (II, orthonormal) of each tensor.

    Along each of ``dims``, of length :math:`n`,

    .. math:: z_k = c_k \sum_i x_i \cos\frac{\pi (2i + 1) k}{2n}, \qquad
        c_0 = \sqrt{1/n}, \quad c_k = \sqrt{2/n},

    the frequencies :math:`k/2n` in ascending order. Inside there is one tensor of the same shape.

    Args:
        modules: What to run on the coefficients.
        dims: The dimensions to transform, None for all. Tensors that lack one pass as they are.
        keep: Keep only the lowest frequencies (a low pass), along each dimension: a count, if it is
            an int, or a fraction. What is not kept stays as it is; the update there is dropped.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If ``keep`` or ``dims`` is out of range.

    Cost: O(N log N) for N elements, each way: one real FFT over all long dimensions, in a reordered
    tensor, and a rotation for each; dimensions of at most 96 by a product with a matrix. The tables
    for lengths up to 65 536 are kept for the process. bfloat16 and float16 are transformed in
    float32. Not compiled: there are complex numbers on the way.

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
    """Undoes `dct`, and is its transpose."""
    long = tuple(dim for dim in dims if z.shape[dim] > MATRIX)
    if long:
        z = inverse_dct_by_fft(z, long)
    for dim in dims:
        if 1 < z.shape[dim] <= MATRIX:
            z = along(z, dct_matrix(z.shape[dim], z.dtype, z.device).t(), dim)
    return z


def dct_by_fft(x: Tensor, dims: Dims) -> Tensor:
    r"""Returns the orthonormal DCT-II along dimensions, by one FFT of real numbers.

    With the elements of :math:`x` in the order 0, 2, 4, ..., 5, 3, 1 and :math:`V` its FFT,
    :math:`\sum_i x_i \cos\frac{\pi (2i+1) k}{2n} = \mathrm{Re}(w_k V_k)`, with
    :math:`w_k = e^{-i \pi k / 2n}`; at :math:`n - k` it is :math:`-\mathrm{Im}(w_k V_k)`. Along the
    dimensions before the last, where :math:`V` is not the FFT of real numbers, "the real part" is
    :math:`(w_k V_k + \bar w_k V_{-k}) / 2`.
    """
    *others, last = dims
    length = x.shape[last]
    for dim in dims:
        x = _take(x, dim, _zigzag(x.shape[dim], None, x.device))
    spectrum = torch.fft.rfftn(x, dim=dims)
    for dim in others:
        turn, back = _turns(x.shape[dim], spectrum.dtype, x.device)
        mirrored = spectrum.index_select(dim, negated(x.shape[dim], None, x.device))
        mirrored.mul_(_at(back, dim, x.ndim))
        spectrum.mul_(_at(turn, dim, x.ndim)).add_(mirrored)
    turn = _last_turn(length, spectrum.dtype, x.device)
    real, imaginary = torch.view_as_real(spectrum.mul_(_at(turn, last, x.ndim))).unbind(-1)
    upper = imaginary.narrow(last, 1, (length - 1) // 2).flip(last).neg_()
    return torch.cat([real, upper], last)


def inverse_dct_by_fft(z: Tensor, dims: Dims) -> Tensor:
    r"""Undoes `dct_by_fft`.

    From the coefficients :math:`C`, :math:`w_k V_k = C_k - i C_{n-k}`, with :math:`C_n = 0`.
    """
    *others, last = dims
    length = z.shape[last]
    real = z.narrow(last, 0, length // 2 + 1)
    imaginary = torch.empty_like(real)
    imaginary.narrow(last, 0, 1).zero_()
    upper = z.narrow(last, length - length // 2, length // 2).flip(last)
    imaginary.narrow(last, 1, length // 2).copy_(upper).neg_()
    spectrum = torch.complex(real, imaginary)
    turn = _last_turn_back(length, spectrum.dtype, z.device)
    spectrum.mul_(_at(turn, last, z.ndim))
    for dim in others:
        turn, back = _turns_back(z.shape[dim], spectrum.dtype, z.device)
        mirrored = spectrum.index_select(dim, negated(z.shape[dim], None, z.device))
        mirrored.mul_(_at(back, dim, z.ndim))
        spectrum.mul_(_at(turn, dim, z.ndim)).add_(mirrored)
    if others:
        spectrum = torch.fft.ifftn(spectrum, dim=others)
    x: Tensor = torch.fft.irfft(spectrum, n=length, dim=last)
    for dim in dims:
        x = _take(x, dim, _zigzag_back(x.shape[dim], None, x.device))
    return x


def _take(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Returns the elements at these places along a dimension, by the faster of two ways."""
    if dim == x.ndim - 1:
        return x.gather(dim, index.expand(x.shape))
    return x.index_select(dim, index)


def _at(vector: Tensor, dim: int, ndim: int) -> Tensor:
    """Returns the vector in a shape that broadcasts along a dimension."""
    return vector.reshape([-1 if d == dim else 1 for d in range(ndim)])


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


def _rotation(length: int) -> Tensor:
    k = torch.arange(length, dtype=torch.float64, device="cpu")
    return torch.polar(torch.ones_like(k), -math.pi / (2 * length) * k)


@table
def _last_turn(length: int) -> Tensor:
    return (_scales(length) * _rotation(length))[: length // 2 + 1]


@table
def _last_turn_back(length: int) -> Tensor:
    return (_rotation(length).conj() / _scales(length))[: length // 2 + 1].resolve_conj()


@table
def _turns(length: int) -> tuple[Tensor, Tensor]:
    turn = 0.5 * _scales(length) * _rotation(length)
    return turn, turn.conj().resolve_conj()


@table
def _turns_back(length: int) -> tuple[Tensor, Tensor]:
    scales = _scales(length)
    turn = _rotation(length).conj().resolve_conj()
    back = -1j * turn / scales[-1]
    back[0] = 0  # there is no coefficient n
    return turn / scales, back


@table
def _zigzag(length: int) -> Tensor:
    index = torch.arange(length, device="cpu")
    return torch.cat([index[::2], index[1::2].flip(0)])


@table
def _zigzag_back(length: int) -> Tensor:
    index = torch.arange(length, device="cpu")
    return torch.where(index % 2 == 0, index // 2, length - 1 - index // 2)
