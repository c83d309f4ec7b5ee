"""Registers the structural projections and routing without importing them."""

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
        summary="Splits all parameters into scalars, each a separate tensor.",
        tags=TAGS,
        aliases=("scalar_projection",),
        example={},
    )
    register(
        "block_partition",
        "projcore_structural:BlockPartition",
        summary="Cuts parameters into chunks or tiles, batched by shape.",
        tags=(*TAGS, "stacking"),
        aliases=("blocks",),
        example=[{"size": 4}, {"count": (2, 2)}],
    )
    register(
        "stack",
        "projcore_structural:Stack",
        summary="Stacks parameters of equal shape, so that modules run once per shape.",
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
        summary="Reshapes tensors.",
        tags=TAGS,
        example={"shape": (None, -1)},
    )
    register(
        "merge_dims",
        "projcore_structural:MergeDims",
        summary="Merges adjacent dimensions up to a maximal size.",
        paper="arXiv:2409.11321",
        tags=TAGS,
        example={"max_size": 6},
    )
    register(
        "permute",
        "projcore_structural:Permute",
        summary="Permutes the dimensions of tensors.",
        tags=TAGS,
        example={"dims": (1, 0)},
    )
    register(
        "tensorize",
        "projcore_structural:Tensorize",
        summary="Reshapes tensors to cubes, so that matrix methods apply to vectors, too.",
        tags=("lossless", "orthonormal", "linear", "redundant"),
        example={},
    )
    register(
        "identity",
        "projcore_structural:Identity",
        summary="The identity: leaves tensors unchanged.",
        tags=TAGS,
        example={},
    )
    register(
        "mask",
        "projcore_structural:Mask",
        summary="Selects elements: a triangle, every k-th, or a random fraction.",
        tags=("linear", "orthonormal"),
        example=[{"triangle": "lower"}, {"fraction": 0.5}],
    )
    register(
        "tangent_sphere",
        "projcore_structural:TangentSphere",
        summary="Projects updates onto the tangent space of a sphere: no change of norm.",
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
        summary="Zeroes the update, so that parameters do not change.",
        tags=("routing",),
        example={},
    )
