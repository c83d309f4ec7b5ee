"""The kernel: modules, chains, projections, and the optimizer that runs them.

To read it, begin with `state` (what is remembered), `module` and `chain` (what maps an update to a
new one), `objective` (what a step knows), `projection`, `crossing` and `passage` (running modules
in another space) and `optimizer` (the shell that torch sees). The others serve these: `settings`
finds the settings of a module in parameter groups, `writing` writes the parameters, by operations
from `blend`, `transport` carries memory over when a map changes, `checkpoint` checks what is
loaded, `arguments` what is given, `presence` tells which parameters take part, `outline` runs the
plan without values, `describe` prints it, `memory` counts what is kept, `finite` finds Inf and NaN,
`autocast` keeps autocast out, `half` computes float16 in float32, `rate` is the learning rate of
optimizers that have none, `items` takes batches apart, and `pieces` runs large updates piece by
piece.
"""

from projcore.core.blend import Blend, Write, blended
from projcore.core.chain import Chain
from projcore.core.finite import first_nonfinite
from projcore.core.memory import Memory
from projcore.core.module import Kind, Module, Need, Row, Scope, Transform, as_module, scalar
from projcore.core.objective import Objective
from projcore.core.optimizer import Optimizer
from projcore.core.projection import Current, Policy, ProjectionBase
from projcore.core.settings import Settings, common, require
from projcore.core.state import Node, State

__all__ = [
    "Blend",
    "Chain",
    "Current",
    "Kind",
    "Memory",
    "Module",
    "Need",
    "Node",
    "Objective",
    "Optimizer",
    "Policy",
    "ProjectionBase",
    "Row",
    "Scope",
    "Settings",
    "State",
    "Transform",
    "Write",
    "as_module",
    "blended",
    "common",
    "first_nonfinite",
    "require",
    "scalar",
]
