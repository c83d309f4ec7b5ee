"""The kernel: modules, chains, projections, and the optimizer that runs them."""

from projcore.core.chain import Chain
from projcore.core.module import Kind, Module, Need, Scope, Transform, as_module, scalar
from projcore.core.objective import Objective
from projcore.core.optimizer import Optimizer
from projcore.core.projection import Current, Policy, ProjectionBase
from projcore.core.settings import Settings, common, require
from projcore.core.state import Node, State

__all__ = [
    "Chain",
    "Current",
    "Kind",
    "Module",
    "Need",
    "Node",
    "Objective",
    "Optimizer",
    "Policy",
    "ProjectionBase",
    "Scope",
    "Settings",
    "State",
    "Transform",
    "as_module",
    "common",
    "require",
    "scalar",
]
