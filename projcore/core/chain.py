"""Chains: modules in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from projcore.core.module import Module, Row, Transform, as_module, check_result
from projcore.core.objective import Objective
from projcore.core.pieces import run_pieces, worthwhile
from projcore.core.state import State
from projcore.errors import ArgumentError


class Chain(Module):
    """Runs modules in order, each on the update that the one before it returned.

    Its memory, settings and needs are those of its modules; they stand at positions ``"0"``,
    ``"1"``, ... and a module may stand at several.

    Args:
        modules: Modules, or specs of them.

    Raises:
        ArgumentError: If it is empty, or something follows a module that must come last.

    Example:
        >>> from projcore.modules import Adam, LR
        >>> print(Chain(Adam(), LR(0.01)))
        adam(); lr(0.01)
    """

    scope = "element"  # its own; see total_scope

    def __init__(self, *modules: Any) -> None:
        made = [as_module(module) for module in modules]
        if not made:
            raise ArgumentError("Chain() was given no modules. It runs one or more. Pass some.")
        for module, follower in pairwise(made):
            if module.final and not follower.observes:
                raise ArgumentError(
                    f"{follower} follows {module}, whose result must reach the parameters as it "
                    f"is. Put {follower} inside it."
                )
        super().__init__(None, **{str(i): module for i, module in enumerate(made)})
        self.final = made[-1].final

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(self.children.values())

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        return self.run(self.children, update, objective, state)

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        self.prepare_some(self.children, objective, state, rows)

    def prepare_some(
        self, names: Iterable[str], objective: Objective, state: State, rows: list[Row]
    ) -> None:
        for name in names:
            self.children[name].prepare(objective, state.child(name), rows)

    def run(
        self, names: Iterable[str], update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        """Runs some of the modules, by name, in the order given."""
        if worthwhile(update):
            return self._run_in_pieces(names, update, objective, state)
        for name in names:
            module = self.children[name]
            result = module.step(update, objective, state.child(name))
            check_result(module, update, result)
            update = result
        return update

    def _run_in_pieces(
        self, names: Iterable[str], update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        elementwise: list[tuple[str, Transform]] = []
        for name in names:
            module = self.children[name]
            if isinstance(module, Transform) and module.scope == "element":
                elementwise.append((name, module))
                continue
            if elementwise:
                update = _run_elementwise(elementwise, update, objective, state)
                elementwise = []
            result = module.step(update, objective, state.child(name))
            check_result(module, update, result)
            update = result
        return _run_elementwise(elementwise, update, objective, state) if elementwise else update


def _run_elementwise(
    modules: Sequence[tuple[str, Transform]],
    update: list[Tensor],
    objective: Objective,
    state: State,
) -> list[Tensor]:
    (name, first), *others = modules
    if others or not first.single_pass:
        return run_pieces(modules, update, objective, state)
    result = first.step(update, objective, state.child(name))
    check_result(first, update, result)
    return result


def as_chain(value: object) -> Chain:
    """Makes a chain of a module, a spec, or a list of these."""
    module = as_module(value)
    return module if isinstance(module, Chain) else Chain(module)
