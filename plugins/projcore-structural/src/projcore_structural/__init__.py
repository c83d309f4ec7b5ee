"""Projections that rearrange or select elements of tensors, and routing of parameters."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_structural.blocks import BlockPartition
    from projcore_structural.freeze import Freeze
    from projcore_structural.identity import Identity
    from projcore_structural.layout import ScalarProjection, VectorProjection
    from projcore_structural.mask import Mask
    from projcore_structural.reshape import MergeDims, Permute, Reshape
    from projcore_structural.route import Route
    from projcore_structural.split_fused import SplitFused
    from projcore_structural.stack import Stack
    from projcore_structural.tangent_sphere import TangentSphere
    from projcore_structural.tensorize import Tensorize

__all__ = [
    "BlockPartition",
    "Freeze",
    "Identity",
    "Mask",
    "MergeDims",
    "Permute",
    "Reshape",
    "Route",
    "ScalarProjection",
    "SplitFused",
    "Stack",
    "TangentSphere",
    "Tensorize",
    "VectorProjection",
]

__getattr__ = lazy(
    __name__,
    BlockPartition="blocks",
    Freeze="freeze",
    Identity="identity",
    Mask="mask",
    MergeDims="reshape",
    Permute="reshape",
    Reshape="reshape",
    Route="route",
    ScalarProjection="layout",
    SplitFused="split_fused",
    Stack="stack",
    TangentSphere="tangent_sphere",
    Tensorize="tensorize",
    VectorProjection="layout",
)
