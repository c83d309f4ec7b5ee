"""Registers the structural projections; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("layout", "lossless", "orthonormal", "linear")


@hookimpl
def projcore_register_projections(register: Register) -> None:
    register(
        "vector",
        "projcore_structural:VectorProjection",
        summary="Merges all parameters into one vector.",
        tags=TAGS,
        aliases=("vector_projection",),
        example={},
    )
    register(
        "scalar",
        "projcore_structural:ScalarProjection",
        summary="Splits all parameters into scalars, each a tensor of its own.",
        tags=TAGS,
        aliases=("scalar_projection",),
        example={},
    )
