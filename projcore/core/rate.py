"""The learning rate of an optimizer in which no module has one: a factor on the whole step.

A scheduler wants a ``"lr"`` in each parameter group. Where no module has a setting of that name, or
several share it, the key is the optimizer's own: 1.0, unless it is given or scheduled, and the
whole step is multiplied by it. What is multiplied is the update as the parameters take it: before
modules that observe, and inside one whose result must reach the parameters as it is.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from projcore.core.chain import Chain
from projcore.core.module import Module, Transform, scalar
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase, split_segments
from projcore.core.settings import RATE, Settings
from projcore.core.state import Node, State

M = TypeVar("M", bound=Module)


class _Rate(Transform):
    """Multiplies the update by the ``lr`` of its group; it stands in no expression."""

    scope = "element"
    affine = True
    single_pass = True

    def coefficients(
        self, states: list[Node], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(scalar(settings[0][RATE]), 0.0)] * len(states)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, settings[0][RATE]))


class _Rated(Module):
    """A module and the factor, at the position of the module alone."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module
        self.factor = _Rate()
        self.scope, self.needs = module.total_scope, module.total_needs

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        update = self.module.step(update, objective, state)
        memory = State([{} for _ in update], {}, _join(state.path, RATE))
        return self.factor.step(update, objective, memory)


def with_rate(chain: Chain) -> tuple[Chain, list[str]]:
    """Returns the chain with the factor where it belongs, and the positions where that is.

    Everything else keeps its position, and so its memory and its settings.
    """
    places: list[str] = []
    return _with_rate(chain, "", places), places


def _with_rate(chain: Chain, path: str, places: list[str]) -> Chain:
    children = list(chain.children.items())
    at = len(children)
    while at and children[at - 1][1].observes:
        at -= 1
    name, last = children[at - 1] if at else ("", None)
    if last is not None and last.final and last.children:
        children[at - 1] = (name, _inside(last, _join(path, name), places))
    else:
        places.append(_join(path, RATE))
        children.insert(at, (RATE, _Rate()))
    return _copy(chain, dict(children))


def _inside(module: Module, path: str, places: list[str]) -> Module:
    children: dict[str, Module] = {}
    for name, child in module.children.items():
        place = _join(path, name)
        if isinstance(child, Chain):
            children[name] = _with_rate(child, place, places)
        elif child.final and child.children:
            children[name] = _inside(child, place, places)
        else:
            places.append(_join(place, RATE))
            children[name] = _Rated(child)
    return _copy(module, children)


def _copy(module: M, children: dict[str, Module]) -> M:
    """Returns a module with other children; its settings and what it derived stay."""
    result = copy.copy(module)
    result.children = children
    if isinstance(result, ProjectionBase):
        result.segments = split_segments(result.chain, result.geometry == "layout")
    return result


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


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
    """Whether it multiplies the update by a number that is its own, as of no memory."""
    stateless = type(module).init is Module.init
    return isinstance(module, Transform) and module.affine and stateless and not module.needs
