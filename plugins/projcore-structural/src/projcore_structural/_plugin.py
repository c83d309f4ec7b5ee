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
        summary="Merges all parameters into one vector, or those of each group, dtype or rule.",
        tags=TAGS,
        aliases=("vector_projection",),
        example=[{}, {"by": ["ndim==2", "*"]}],
    )
    register(
        "scalar",
        "projcore_structural:ScalarProjection",
        summary="Splits all parameters into scalars, each a tensor of its own.",
        tags=TAGS,
        aliases=("scalar_projection",),
        example={},
    )
    register(
        "block_partition",
        "projcore_structural:BlockPartition",
        summary="Cuts parameters into chunks or tiles, each a tensor of its own, in batches.",
        tags=(*TAGS, "stacking"),
        aliases=("blocks",),
        example=[{"size": 4}, {"count": (2, 2)}],
    )
    register(
        "stack",
        "projcore_structural:Stack",
        summary="Stacks parameters of one shape, so that modules run once for all of them.",
        tags=(*TAGS, "stacking"),
        example={},
    )
    register(
        "split_fused",
        "projcore_structural:SplitFused",
        summary="Splits fused weights (query, key and value; gate and up; heads) into their parts.",
        tags=TAGS,
        example={"parts": 2},
    )
    register(
        "reshape",
        "projcore_structural:Reshape",
        summary="Gives tensors another shape.",
        tags=TAGS,
        example={"shape": (None, -1)},
    )
    register(
        "merge_dims",
        "projcore_structural:MergeDims",
        summary="Merges neighbouring dimensions while they are small.",
        paper="arXiv:2409.11321",
        tags=TAGS,
        example={"max_size": 6},
    )
    register(
        "permute",
        "projcore_structural:Permute",
        summary="Puts the dimensions of tensors into another order.",
        tags=TAGS,
        example={"dims": (1, 0)},
    )
    register(
        "tensorize",
        "projcore_structural:Tensorize",
        summary="Makes a cube of each tensor, so that vectors get what is made for matrices.",
        tags=("lossless", "orthonormal", "linear", "redundant"),
        example={},
    )
    register(
        "identity",
        "projcore_structural:Identity",
        summary="Leaves tensors as they are.",
        tags=TAGS,
        example={},
    )
    register(
        "mask",
        "projcore_structural:Mask",
        summary="Runs modules on chosen elements only: a triangle, every k-th, a random part.",
        tags=("linear", "orthonormal"),
        example=[{"triangle": "lower"}, {"fraction": 0.5}],
    )
    register(
        "tangent_sphere",
        "projcore_structural:TangentSphere",
        summary="Makes updates orthogonal to their parameters, so that they turn and do not scale.",
        paper="arXiv:2501.04697",
        aliases=("ortho_grad",),
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
