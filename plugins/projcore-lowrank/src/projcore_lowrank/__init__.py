"""Smaller subspaces: low-rank, random and coordinate, and the published methods built on them."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_lowrank.apollo import Apollo, ApolloMini
    from projcore_lowrank.basis import Basis
    from projcore_lowrank.combine import Combine, Given, Terms
    from projcore_lowrank.compensation import Compensation
    from projcore_lowrank.coordinates import Coordinates
    from projcore_lowrank.cosines import Cosines
    from projcore_lowrank.fira import Fira
    from projcore_lowrank.galore_torch import from_galore_torch
    from projcore_lowrank.grassmann import GrassWalk, SubTrack
    from projcore_lowrank.intrinsic_subspace import IntrinsicSubspace
    from projcore_lowrank.memory import Keep, Memory, Reset, Transport
    from projcore_lowrank.published import (
        CoordinateSubspace,
        DCTSelect,
        GaLore,
        LDAdamSubspace,
        LowRank,
        RandomSubspace,
    )
    from projcore_lowrank.random_basis import RandomBasis
    from projcore_lowrank.sara import SARA
    from projcore_lowrank.singular import SVD, Gram, Randomized, SubspaceIteration
    from projcore_lowrank.soap_rotation import SOAPRotation
    from projcore_lowrank.subspace import Subspace
    from projcore_lowrank.switching import Switching
    from projcore_lowrank.tracking import Tracking, Variances
    from projcore_lowrank.tucker import Tucker
    from projcore_lowrank.unproject import Residual, SignResidual, Unproject

__all__ = [
    "SARA",
    "SVD",
    "Apollo",
    "ApolloMini",
    "Basis",
    "Combine",
    "Compensation",
    "CoordinateSubspace",
    "Coordinates",
    "Cosines",
    "DCTSelect",
    "Fira",
    "GaLore",
    "Given",
    "Gram",
    "GrassWalk",
    "IntrinsicSubspace",
    "Keep",
    "LDAdamSubspace",
    "LowRank",
    "Memory",
    "RandomBasis",
    "RandomSubspace",
    "Randomized",
    "Reset",
    "Residual",
    "SOAPRotation",
    "SignResidual",
    "SubTrack",
    "Subspace",
    "SubspaceIteration",
    "Switching",
    "Terms",
    "Tracking",
    "Transport",
    "Tucker",
    "Unproject",
    "Variances",
    "from_galore_torch",
]

__getattr__ = lazy(
    __name__,
    Apollo="apollo",
    ApolloMini="apollo",
    Basis="basis",
    Combine="combine",
    Compensation="compensation",
    CoordinateSubspace="published",
    Coordinates="coordinates",
    Cosines="cosines",
    DCTSelect="published",
    Fira="fira",
    GaLore="published",
    Given="combine",
    Gram="singular",
    GrassWalk="grassmann",
    IntrinsicSubspace="intrinsic_subspace",
    Keep="memory",
    LDAdamSubspace="published",
    LowRank="published",
    Memory="memory",
    RandomBasis="random_basis",
    RandomSubspace="published",
    Randomized="singular",
    Reset="memory",
    Residual="unproject",
    SARA="sara",
    SOAPRotation="soap_rotation",
    SVD="singular",
    SignResidual="unproject",
    SubTrack="grassmann",
    Subspace="subspace",
    SubspaceIteration="singular",
    Switching="switching",
    Terms="combine",
    Tracking="tracking",
    Transport="memory",
    Tucker="tucker",
    Unproject="unproject",
    Variances="tracking",
    from_galore_torch="galore_torch",
)
