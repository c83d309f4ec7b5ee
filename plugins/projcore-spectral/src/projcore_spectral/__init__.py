"""Projections into fixed orthonormal bases: Fourier, cosine, Hadamard and wavelets."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_spectral.dct import DCT
    from projcore_spectral.fourier import Fourier
    from projcore_spectral.gwt import GWT
    from projcore_spectral.hadamard import Hadamard
    from projcore_spectral.wavelets import Daubechies, Haar

__all__ = ["DCT", "GWT", "Daubechies", "Fourier", "Haar", "Hadamard"]

__getattr__ = lazy(
    __name__,
    DCT="dct",
    Daubechies="wavelets",
    Fourier="fourier",
    GWT="gwt",
    Haar="wavelets",
    Hadamard="hadamard",
)
