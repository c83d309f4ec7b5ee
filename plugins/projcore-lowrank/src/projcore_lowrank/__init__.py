"""Smaller subspaces: low-rank, random and coordinate, and the published methods built on them."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_lowrank.coordinate_subspace import CoordinateSubspace
    from projcore_lowrank.dct_select import DCTSelect
    from projcore_lowrank.galore_torch import from_galore_torch
    from projcore_lowrank.intrinsic_dimension import IntrinsicDimension
    from projcore_lowrank.ldadam import LDAdam
    from projcore_lowrank.low_rank import GaLore, LowRank
    from projcore_lowrank.random_subspace import RandomSubspace
    from projcore_lowrank.soap_rotation import SOAPRotation
    from projcore_lowrank.tucker import Tucker

__all__ = [
    "CoordinateSubspace",
    "DCTSelect",
    "GaLore",
    "IntrinsicDimension",
    "LDAdam",
    "LowRank",
    "RandomSubspace",
    "SOAPRotation",
    "Tucker",
    "from_galore_torch",
]

__getattr__ = lazy(
    __name__,
    CoordinateSubspace="coordinate_subspace",
    DCTSelect="dct_select",
    GaLore="low_rank",
    IntrinsicDimension="intrinsic_dimension",
    LDAdam="ldadam",
    LowRank="low_rank",
    RandomSubspace="random_subspace",
    SOAPRotation="soap_rotation",
    Tucker="tucker",
    from_galore_torch="galore_torch",
)
