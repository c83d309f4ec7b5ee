"""Whether modules set the step size of an optimizer."""

from __future__ import annotations

from projcore.core.chain import Chain
from projcore.core.module import Module, Transform
from projcore.engine.names import RATE


def sets_step_size(module: Module) -> bool | None:
    """Whether a module sets the step size: True, or False if its result forgets any set before.

    None if it is neither: it hands on the step size of what comes in. A learning rate, a constant
    factor and a line search set it, and so do quasi-Newton directions; what divides by the square
    root of second moments forgets it.
    """
    if RATE in module.defaults or {"closure", "loss"} <= module.needs:
        return True
    if _is_factor(module) or "history" in module.kinds.values():
        return True
    if "second" in module.kinds.values():
        return False
    if isinstance(module, Chain):
        found = (sets_step_size(child) for child in reversed(module.modules))
        return next((each for each in found if each is not None), None)
    inside = {sets_step_size(child) for child in module.children.values()}
    return False if False in inside else True if True in inside else None


def _is_factor(module: Module) -> bool:
    """Whether it multiplies the update by a number that is its own, and keeps no state."""
    stateless = type(module).init is Module.init
    return (
        isinstance(module, Transform)
        and module.coefficients([], [module.defaults]) is not None
        and stateless
        and not module.needs
    )
