"""Registers the projection; imports neither it nor torch."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1


@hookimpl
def projcore_register_projections(register: Register) -> None:
    register(
        "kronecker",
        "projcore_kronecker:Kronecker",
        summary="Rotates matrices to the eigenbasis of their gradients' covariance.",
        paper="arXiv:2409.11321",
        tags=("lossless", "orthonormal", "linear", "data_dependent"),
        example=[{"period": 1}, {"period": 2, "beta": 0.5}],
    )
