"""What this plugin registers keeps the laws that its tags promise."""

from __future__ import annotations

from projcore.testing import Subject, parametrize_with_checks
from projcore.testing.parts import Moments, Momentum, Scale
from projcore_structural import (
    BlockPartition,
    Mask,
    Reshape,
    Route,
    SplitFused,
    TangentSphere,
    Tensorize,
    VectorProjection,
)

# The registered example remembers nothing; this one does.
ROUTES = {"ndim>=2": [Moments(), Scale(0.1)], "*": Momentum()}
WITH_MEMORY = Subject(Route, "route with memory", example={"routes": ROUTES})

LINEAR = frozenset({"linear"})
ALL = LINEAR | {"lossless", "orthonormal"}
LAYOUT = ALL | {"layout"}
MORE = [
    Subject(VectorProjection, "vector by group", LAYOUT, {"by": "group"}),
    Subject(VectorProjection, "vector by dtype", LAYOUT, {"by": "dtype"}),
    Subject(BlockPartition, "tiles", LAYOUT, {"size": (2, 3)}),
    Subject(SplitFused, "unequal parts", LAYOUT, {"parts": (1, 3)}),
    Subject(Reshape, "flat", LAYOUT, {"shape": (-1,)}),
    Subject(Mask, "every second", LINEAR | {"orthonormal"}, {"every": 2}),
    # Not so registered: inside itself, the parameter that it reads is the projected one.
    Subject(TangentSphere, "linear tangents", LINEAR | {"redundant"}),
    Subject(Tensorize, "unpadded cubes", ALL, {"ndim": 1}),
    Subject(Tensorize, "cubes of many dimensions", ALL | {"redundant"}, {"max_side": 2}),
]


@parametrize_with_checks("structural", WITH_MEMORY, *MORE)
def test_laws(check):
    check()
