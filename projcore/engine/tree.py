"""What holds of a module and of all that it runs."""

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
    scopes = module.scope, module.total_scope  # of a layout, the latter is narrower
    if module.sharded is False:
        return False
    chooses = bool(module.sharded and module.children) and not isinstance(module, ProjectionBase)
    return "element" in scopes or chooses


def first_unsharded(module: Module) -> Module | None:
    """Returns the first of a module and its children that cannot run on shards, or None.

    A module that works on each tensor by itself gets it unsharded, unless it asks for the loss or
    evaluates it.
    """
    return next((each for each in tree(module) if not takes_shards(each) and _is_wide(each)), None)


def takes_shards(module: Module) -> bool:
    """Whether a module is correct for parameters of which each process has a part."""
    if module.sharded is not None:
        return module.sharded
    return "element" in (module.scope, module.total_scope)  # of a layout, the latter is narrower


def runs_locally(module: Module) -> bool:
    """Whether a module runs on the parts of sharded parameters as on full ones.

    Affine ones need not, as they become numbers.
    """
    return (
        isinstance(module, Transform)
        and module.scope == "element"
        and module.sharded is None
        and not is_affine(module)
    )


def is_affine(module: Transform) -> bool:
    """Whether a module has coefficients: if it returns any for no tensors."""
    return module.coefficients([], [module.defaults]) is not None


def _is_wide(module: Module) -> bool:
    return module.total_scope == "all" or not module.total_needs.isdisjoint({"closure", "loss"})
