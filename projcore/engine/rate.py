"""The step size of an optimizer: whether modules set it, and a module to append."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from projcore.core.chain import Chain
from projcore.core.module import Module, Transform
from projcore.engine.names import RATE, positions
from projcore.engine.tree import is_affine
from projcore.errors import ArgumentError
from projcore.spec import build


def with_rate(chain: Chain, lr: float | Tensor) -> Chain:
    """Returns the chain with the module `lr` before the modules that come last, or else at the end.

    Raises:
        ArgumentError: If a module has a learning rate already.
    """
    for _, module in positions(chain):
        if RATE in module.defaults:
            raise ArgumentError(
                f"Optimizer(lr={lr!r}) appends a learning rate, but {module} has one. Leave out "
                "one of the two."
            )
    modules = list(_flat(chain))
    end = len(modules)
    while end and modules[end - 1].comes_last:
        end -= 1
    return Chain(*modules[:end], build({RATE: lr}), *modules[end:])


def _flat(chain: Chain) -> Iterator[Module]:
    """Yields the modules of a chain; a chain at the end is split if its last module comes last."""
    *others, last = chain.modules
    yield from others
    if isinstance(last, Chain) and _last_module(last).comes_last:
        yield from _flat(last)
    else:
        yield last


def _last_module(chain: Chain) -> Module:
    last = chain.modules[-1]
    return _last_module(last) if isinstance(last, Chain) else last


def sets_step_size(module: Module) -> bool | None:
    """Whether a module sets the step size: True, or False if it removes one that was set before.

    None if it does neither, so that the update keeps its step size. A learning rate, a constant
    factor, a line search and quasi-Newton directions set it; a division by the square root of
    second moments removes it.
    """
    if RATE in module.defaults or {"closure", "loss"} <= module.needs:
        return True
    # Whether it multiplies the update by a factor of its own, without state.
    stateless = type(module).init is Module.init and not module.needs
    is_factor = isinstance(module, Transform) and is_affine(module) and stateless
    if is_factor or "history" in module.kinds.values():
        return True
    if "second" in module.kinds.values():
        return False
    if isinstance(module, Chain):
        found = (sets_step_size(child) for child in reversed(module.modules))
        return next((each for each in found if each is not None), None)
    inside = {sets_step_size(child) for child in module.children.values()}
    return False if False in inside else True if True in inside else None
