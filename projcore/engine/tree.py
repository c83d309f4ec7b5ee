"""Properties of modules, together with the modules that they run."""

from __future__ import annotations

from collections.abc import Iterator

from projcore.core.module import Module, Transform
from projcore.core.projection import ProjectionBase


def tree(module: Module) -> Iterator[Module]:
    """Yields a module, and then its children with theirs."""
    yield module
    for child in module.children.values():
        yield from tree(child)


def is_zeroth_order(module: Module) -> bool:
    """Whether a module or one of its children is zeroth-order."""
    return any(each.zeroth_order for each in tree(module))


def is_elementwise(module: Module) -> bool:
    """Whether a module by itself, apart from its children, depends on single elements only."""
    scopes = module.scope, module.total_scope  # the latter is narrower for a layout
    if module.sharded is False:
        return False
    selects = bool(module.sharded and module.children) and not isinstance(module, ProjectionBase)
    return "element" in scopes or selects


def first_unsharded(module: Module) -> Module | None:
    """Returns the first of a module and its children that cannot run on shards, or None.

    A module that processes each tensor separately gets it unsharded, unless it reads or evaluates
    the loss.
    """
    modules = tree(module)
    return next((each for each in modules if not takes_shards(each) and _needs_all(each)), None)


def takes_shards(module: Module) -> bool:
    """Whether a module is correct on sharded parameters."""
    if module.sharded is not None:
        return module.sharded
    return "element" in (module.scope, module.total_scope)  # the latter is narrower for a layout


def runs_locally(module: Module) -> bool:
    """Whether a module is to run on the local shards of parameters.

    Affine modules are not, as they become coefficients.
    """
    return (
        isinstance(module, Transform)
        and module.scope == "element"
        and module.sharded is None
        and not is_affine(module)
    )


def is_affine(module: Transform) -> bool:
    """Whether a module has coefficients, which it then also returns for no tensors."""
    return module.coefficients([], [module.defaults]) is not None


def _needs_all(module: Module) -> bool:
    return module.total_scope == "all" or not module.total_needs.isdisjoint({"closure", "loss"})
