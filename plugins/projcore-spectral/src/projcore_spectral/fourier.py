"""The Fourier transform, as real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projcore.errors import ArgumentError
from projcore_spectral._spectral import Spectral
from projcore_spectral._tables import table

Form = Literal["hartley", "half"]
Dims = tuple[int, ...]


class Fourier(Spectral):
    r"""Runs modules on the Fourier transform of each tensor, as real numbers.

    With :math:`F = \mathrm{fftn}(x)`, unitary, along ``dims``, each tensor has the same shape
    inside:

    * ``form="hartley"``: :math:`z_k = \mathrm{Re} F_k - \mathrm{Im} F_k`, the discrete Hartley
      transform, its own inverse. Frequencies are in the order of ``torch.fft``.
    * ``form="half"``: each pair of conjugate frequencies once, as :math:`\sqrt2\,\mathrm{Re} F_k`
      and :math:`\sqrt2\,\mathrm{Im} F_k`, and real frequencies as single numbers. The order is
      :math:`F_0, \mathrm{Re} F_1, \mathrm{Im} F_1, \mathrm{Re} F_2, \dots` along the last
      dimension, and :math:`0, 1, -1, 2, -2, \dots` along the others.
    * The transform of a complex tensor is the complex :math:`F`, in either form.

    All are orthonormal: gradients, step lengths and curvature are the same inside as outside. (The
    half spectrum without :math:`\sqrt2` is not: its gradients would be too large by a factor of 2
    at most frequencies, but not at all of them, and a line search or L-BFGS would converge
    differently.)

    For the transform of all parameters as one vector, use ``VectorProjection([Fourier([...])])``.

    Args:
        modules: The modules to run on the frequencies.
        form: The representation of frequencies by real numbers.
        dims: The dimensions to transform, None for all. Tensors that lack one pass unchanged.
        keep: Keep only the lowest frequencies (a low pass), along each dimension: an int is a
            count, a float a fraction. The other coefficients do not change: their updates are
            dropped.
        pad: Append zeros up to a length that is a product of 2, 3, 5 and 7, along each dimension.
            A transform of another length, such as one with a large prime factor, takes several
            times as long. With :math:`E` the padding followed by the longer transform, :math:`U =
            E^\top`, and :math:`U U^\top = I`: nothing is lost, and gradient descent is unchanged.
            But :math:`U^\top U \neq I`: there are more frequencies inside than numbers outside, so
            results of modules are projected to the range of :math:`E`.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If an argument is out of range, or both ``keep`` and ``pad`` are given.

    Cost: O(N log N) for N elements, each way. bfloat16 and float16 are transformed in float32.
    Not compiled, because of complex intermediates.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Fourier([Adam()]), LR(1e-2))

    References:
        Bracewell, 1983, The discrete Hartley transform, https://doi.org/10.1364/JOSA.73.001832.
        torchzero's `FFTProjection` takes the half spectrum without weights.
    """

    splits_complex = False
    traceable = False

    def __init__(
        self,
        modules: Any,
        form: Form = "hartley",
        dims: Sequence[int] | None = None,
        keep: float | None = None,
        pad: bool = False,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, dims, keep, project_update, project_params, project_grad)
        if form not in get_args(Form):
            raise ArgumentError(
                f"Fourier(form={form!r}) is unknown. Pass one of {', '.join(get_args(Form))}."
            )
        if pad and keep is not None:
            raise ArgumentError(
                f"Fourier(keep={keep!r}, pad=True) would keep frequencies of a longer tensor, "
                "which are not orthonormal on this one. Remove one of the two."
            )
        self.form = form
        self.pad = pad

    def lengths(self, lengths: Dims) -> Dims:
        return tuple(map(fast_length, lengths)) if self.pad else lengths

    def forward(self, x: Tensor, dims: Dims, extra: Sequence[Any]) -> Tensor:
        if not dims:
            return x
        if self.pad:
            x = self.embed_zeros(x, dims)
        if x.is_complex():
            spectrum: Tensor = torch.fft.fftn(x, dim=dims, norm="ortho")
            return spectrum
        return hartley(x, dims) if self.form == "hartley" else half_spectrum(x, dims)

    def backward(self, z: Tensor, dims: Dims, lengths: Dims, extra: Sequence[Any]) -> Tensor:
        if not dims:
            return z
        x: Tensor
        if z.is_complex():
            x = torch.fft.ifftn(z, dim=dims, norm="ortho")
        else:
            x = hartley(z, dims) if self.form == "hartley" else from_half_spectrum(z, dims)
        if self.pad:
            for dim, length in zip(dims, lengths, strict=True):
                x = x.narrow(dim, 0, length)
        return x

    def embed_zeros(self, x: Tensor, dims: Dims) -> Tensor:
        """Appends zeros up to fast lengths."""
        return super().embed(x, dims, tuple(fast_length(x.shape[dim]) for dim in dims))

    def select(self, z: Tensor, dims: Dims, kept: Dims) -> Tensor:
        if self.form == "half" and not z.is_complex():
            return super().select(z, dims, kept)
        for dim, count in zip(dims, kept, strict=True):
            low = count // 2 + 1  # 0, 1, ..., and then ..., -2, -1
            if count < z.shape[dim]:
                ends = z.narrow(dim, 0, low), z.narrow(dim, z.shape[dim] - count + low, count - low)
                z = torch.cat(ends, dim)
        return z

    def embed(self, z: Tensor, dims: Dims, lengths: Dims) -> Tensor:
        if self.form == "half" and not z.is_complex():
            return super().embed(z, dims, lengths)
        for dim, length in zip(dims, lengths, strict=True):
            count = z.shape[dim]
            low = count // 2 + 1
            if count < length:
                shape = list(z.shape)
                shape[dim] = length - count
                ends = z.narrow(dim, 0, low), z.narrow(dim, low, count - low)
                z = torch.cat([ends[0], z.new_zeros(shape), ends[1]], dim)
        return z


def hartley(x: Tensor, dims: Dims) -> Tensor:
    """Returns the discrete Hartley transform along dimensions, ``Re F - Im F``."""
    length = x.shape[dims[-1]]
    spectrum = torch.view_as_real(torch.fft.rfftn(x, dim=dims, norm="ortho"))
    real, imaginary = spectrum.unbind(-1)
    # F at -k is the conjugate of F at k, which gives the half that rfftn omits.
    count = (length - 1) // 2
    upper = (real.narrow(dims[-1], 1, count) + imaginary.narrow(dims[-1], 1, count)).flip(dims[-1])
    for dim in dims[:-1]:
        upper = upper.index_select(dim, negated(x.shape[dim], None, x.device))
    return torch.cat([real - imaginary, upper], dims[-1])


def half_spectrum(x: Tensor, dims: Dims) -> Tensor:
    """Returns each pair of conjugate frequencies once, isometrically, as real numbers."""
    if not dims:
        return x
    *others, last = dims
    length = x.shape[last]
    spectrum = torch.fft.rfft(x, dim=last, norm="ortho")
    parts = [half_spectrum(spectrum.narrow(last, 0, 1).real, tuple(others))]
    count = (length - 1) // 2
    if count:
        inner = spectrum.narrow(last, 1, count)
        if others:
            inner = torch.fft.fftn(inner, dim=others, norm="ortho")
            for dim in others:
                inner = inner.index_select(dim, by_size(x.shape[dim], None, x.device))
        pairs = torch.view_as_real(inner * math.sqrt(2)).movedim(-1, last + 1)
        parts.append(pairs.flatten(last, last + 1))
    if length % 2 == 0:
        parts.append(half_spectrum(spectrum.narrow(last, length // 2, 1).real, tuple(others)))
    return torch.cat(parts, last)


def from_half_spectrum(z: Tensor, dims: Dims) -> Tensor:
    """Returns the inverse of `half_spectrum`."""
    if not dims:
        return z
    *others, last = dims
    length = z.shape[last]
    count = (length - 1) // 2
    edge = from_half_spectrum(z.narrow(last, 0, 1), tuple(others))
    parts = [torch.complex(edge, torch.zeros_like(edge))]
    if count:
        pairs = (z.narrow(last, 1, 2 * count) * math.sqrt(0.5)).unflatten(last, (count, 2))
        inner = torch.complex(*pairs.unbind(last + 1))
        if others:
            for dim in others:
                inner = inner.index_select(dim, by_size_back(z.shape[dim], None, z.device))
            inner = torch.fft.ifftn(inner, dim=others, norm="ortho")
        parts.append(inner)
    if length % 2 == 0:
        edge = from_half_spectrum(z.narrow(last, length - 1, 1), tuple(others))
        parts.append(torch.complex(edge, torch.zeros_like(edge)))
    x: Tensor = torch.fft.irfft(torch.cat(parts, last), n=length, dim=last, norm="ortho")
    return x


@table
def negated(length: int) -> Tensor:
    """Returns the index of frequency -k for each k."""
    return (-torch.arange(length, device="cpu")).remainder(length)


@table
def by_size(length: int) -> Tensor:
    """Returns the indices of the frequencies 0, 1, -1, 2, -2, ..."""
    index = torch.arange(length, device="cpu")
    half = (index + 1) // 2
    return torch.where(index % 2 == 1, half, -half).remainder(length)


@table
def by_size_back(length: int) -> Tensor:
    """Returns the index in `by_size` of each frequency."""
    return torch.argsort(by_size(length, None, torch.device("cpu")))


def fast_length(length: int) -> int:
    """Returns the smallest length, at least the given one, that is a product of 2, 3, 5 and 7."""
    if length < 2:
        return length
    best = 1 << (length - 1).bit_length()
    sevens = 1
    while sevens < best:
        fives = sevens
        while fives < best:
            threes = fives
            while threes < best:
                best = min(best, threes << max(0, (length - 1) // threes).bit_length())
                threes *= 3
            fives *= 5
        sevens *= 7
    return best
