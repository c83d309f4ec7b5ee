"""What this plugin registers keeps the laws that its tags promise."""

from __future__ import annotations

from typing import Any

from projcore.testing import Subject, parametrize_with_checks
from projcore_spectral import DCT, Fourier, Haar, Hadamard

KEEP: list[tuple[Any, dict[str, Any]]] = [
    (Fourier, {"keep": 2}),
    (Fourier, {"form": "half", "keep": 0.6}),
    (DCT, {"keep": 0.5}),
    (Hadamard, {"signs": 1, "keep": 0.5}),
    (Haar, {"keep": 2}),
]
LOSSY = [
    Subject(cls, f"{cls.__name__} of {example}", frozenset({"linear", "orthonormal"}), example)
    for cls, example in KEEP
]
PADDING = frozenset({"linear", "lossless", "orthonormal", "redundant"})
PADDED = Subject(Fourier, "padded", PADDING, {"pad": True})


@parametrize_with_checks("spectral")
def test_laws(check):
    check()


@parametrize_with_checks(*LOSSY)
def test_laws_of_low_passes(check):
    check()


# The lengths of the checks' problems are fast ones already: here they are not.
@parametrize_with_checks(PADDED)
def test_laws_of_padding(check, monkeypatch):
    monkeypatch.setattr("projcore_spectral.fourier.fast_length", lambda length: 2 * length + 1)
    check()
