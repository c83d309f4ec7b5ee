"""Registers the projections between number formats; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1


@hookimpl
def projcore_register_projections(register: Register) -> None:
    register(
        "to",
        "projcore_cast:To",
        summary="Casts to another dtype or device, optionally with a master copy.",
        paper="arXiv:1710.03740",
        tags=("linear",),  # lossless only where it widens
        example=[{"dtype": "float64"}, {"dtype": "float64", "master": True}],
    )
    register(
        "view_as_real",
        "projcore_cast:ViewAsReal",
        summary="Views complex parameters as pairs of real numbers; real ones pass unchanged.",
        tags=("lossless", "orthonormal", "linear"),
        example={},
    )
