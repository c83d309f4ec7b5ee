"""The laws, one file each; importing them declares them, in this order."""

from projcore.testing.laws.recipe import recipe
from projcore.testing.laws.rebuild import rebuild
from projcore.testing.laws.settings import settings_law
from projcore.testing.laws.round_trip import round_trip
from projcore.testing.laws.adjoint import adjoint
from projcore.testing.laws.composition import composition
from projcore.testing.laws.invariance import invariance
from projcore.testing.laws.scope import scope
from projcore.testing.laws.batched import batched
from projcore.testing.laws.resume import resume
from projcore.testing.laws.memory import memory_law
from projcore.testing.laws.side_effects import side_effects
from projcore.testing.laws.atomic import atomic, atomic_everywhere
from projcore.testing.laws.reach import reach
from projcore.testing.laws.nesting import nesting
from projcore.testing.laws.inputs import inputs
from projcore.testing.laws.compiled import compiled

__all__ = [
    "adjoint",
    "atomic",
    "atomic_everywhere",
    "batched",
    "compiled",
    "composition",
    "inputs",
    "invariance",
    "memory_law",
    "nesting",
    "reach",
    "rebuild",
    "recipe",
    "resume",
    "round_trip",
    "scope",
    "settings_law",
    "side_effects",
]
