"""The laws, one file each; those that say most precisely what is wrong are checked first."""

from projcore.testing.law import Law
from projcore.testing.laws.adjoint import adjoint
from projcore.testing.laws.atomic import atomic, atomic_everywhere
from projcore.testing.laws.autocast import autocast
from projcore.testing.laws.batched import batched
from projcore.testing.laws.compiled import compiled
from projcore.testing.laws.composition import composition
from projcore.testing.laws.frozen import frozen
from projcore.testing.laws.in_parts import in_parts
from projcore.testing.laws.inputs import inputs
from projcore.testing.laws.invariance import invariance
from projcore.testing.laws.memory import memory
from projcore.testing.laws.nesting import nesting, nesting_everywhere
from projcore.testing.laws.nonfinite import nonfinite
from projcore.testing.laws.passes import passes
from projcore.testing.laws.reach import reach
from projcore.testing.laws.rebuild import rebuild
from projcore.testing.laws.recipe import recipe
from projcore.testing.laws.refresh import refresh
from projcore.testing.laws.resume import resume
from projcore.testing.laws.returns import returns
from projcore.testing.laws.round_trip import round_trip
from projcore.testing.laws.scope import scope
from projcore.testing.laws.settings import settings
from projcore.testing.laws.side_effects import side_effects

LAWS: tuple[Law, ...] = (
    returns,
    settings,
    side_effects,
    recipe,
    rebuild,
    refresh,
    round_trip,
    adjoint,
    invariance,
    composition,
    scope,
    batched,
    memory,
    frozen,
    passes,
    in_parts,
    resume,
    autocast,
    reach,
    inputs,
    nonfinite,
    nesting,
    atomic,
    atomic_everywhere,
    nesting_everywhere,
    compiled,
)
