"""Chains: modules that run in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from projcore._arguments import not_a_module
from projcore._bases import AnyChain
from projcore.core.module import Module, Planner
from projcore.core.space import Space
from projcore.errors import ArgumentError
from projcore.spec import build


class Chain(Module, AnyChain):
    """Runs modules in order, each on the update that the one before it returned.

    Its state, settings and needs are those of its modules, which are at the positions ``"0"``,
    ``"1"``, ...; one module may be at several.

    Args:
        modules: Modules or specs; the attribute holds modules.

    Raises:
        ArgumentError: If it is empty.

    Example:
        >>> from projcore.modules import Adam, LR
        >>> print(Chain(Adam(), LR(0.01)))
        adam(); lr(0.01)
    """

    scope = "element"  # apart from its modules; see total_scope

    def __init__(self, *modules: Any) -> None:
        made = [as_module(module) for module in modules]
        if not made:
            raise ArgumentError("Chain() was given no modules. It needs at least one.")
        super().__init__(None, **{str(i): module for i, module in enumerate(made)})
        self.modules = tuple(made)

    def plan(self, planner: Planner, space: Space) -> None:
        for name, module in self.children.items():
            module.plan(planner, space.child(name))


def as_module(value: object) -> Module:
    """Returns a module, the module of a spec (``"adam()"``), or a `Chain` of a list of these.

    Raises:
        ArgumentTypeError: If the value is none of these.
    """
    if isinstance(value, Module):
        return value
    if isinstance(value, (str, Mapping)):
        return build(value)
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        return Chain(*value)
    raise not_a_module(value)


def as_chain(value: object) -> Chain:
    """Returns a chain, or the chain of a module, a spec, or a list of these."""
    module = as_module(value)
    return module if isinstance(module, Chain) else Chain(module)
