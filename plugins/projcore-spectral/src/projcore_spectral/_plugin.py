"""Registers the fixed orthonormal transforms without importing them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("linear", "lossless", "orthonormal")  # lossless without keep, orthonormal without pad


@hookimpl
def projcore_register_projections(register: Register) -> None:
    register(
        "fourier",
        "projcore_spectral:Fourier",
        summary="Runs modules on the Fourier transform of each tensor, as real numbers.",
        tags=TAGS,
        example=[{}, {"form": "half"}],
    )
    register(
        "dct",
        "projcore_spectral:DCT",
        summary="Runs modules on the discrete cosine transform of each tensor.",
        paper="doi:10.1109/TASSP.1980.1163351",
        tags=TAGS,
        example=[{}, {"dims": (-1,)}],
    )
    register(
        "hadamard",
        "projcore_spectral:Hadamard",
        summary="Runs modules on the Walsh-Hadamard transform of each tensor, with random signs.",
        paper="doi:10.1109/T-C.1969.222700",
        tags=TAGS,
        example=[{}, {"signs": 0}],
    )
    register(
        "haar",
        "projcore_spectral:Haar",
        summary="Runs modules on the Haar wavelet transform of each tensor.",
        paper="arXiv:2501.07237",
        tags=TAGS,
        example={},
    )
    register(
        "daubechies",
        "projcore_spectral:Daubechies",
        summary="Runs modules on the Daubechies wavelet transform of each tensor.",
        paper="doi:10.1002/cpa.3160410705",
        tags=TAGS,
        example={"order": 2},
    )
    register(
        "gwt",
        "projcore_spectral:GWT",
        summary="State for approximation coefficients only; detail coefficients rescaled.",
        paper="arXiv:2501.07237",
        tags=("linear", "orthonormal", "data_dependent"),
        example=[
            {"level": 1, "detail": "ratio"},
            {"detail": "ratio", "limit": None, "scale": 1.0},
        ],
    )
