"""Registers the structural projections, and routing; imports none of them."""

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


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "route",
        "projcore_structural:Route",
        summary="Runs different modules on different parameters, by name, shape or dtype.",
        tags=("routing",),
        example={"routes": {"ndim>=2": "freeze()", "*": None}},
    )
    register(
        "freeze",
        "projcore_structural:Freeze",
        summary="Makes the update zero, so that parameters stay where they are.",
        tags=("routing",),
        example={},
    )
