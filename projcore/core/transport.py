"""Carries memory over when a projection changes its map, by the kinds of its entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from projcore.core.crossing import INNER, Crossing, ProjectedObjective
from projcore.core.module import Kind, Module
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase
from projcore.core.state import SHARED, Node, State

KEPT: tuple[Kind, ...] = ("scalar", "fixed")

Move = Callable[["list[Tensor]", Kind], "list[Tensor] | None"]


class _Space:
    """A space inside a projection, whose shapes cost a product: they are found when asked for."""

    def __init__(self, crossing: Crossing, tensors: list[Tensor]) -> None:
        self._crossing = crossing
        self._tensors = tensors
        if crossing.projection.scope == "all":  # which tensors there are is only then known
            _ = self.facts
        else:
            crossing.origins = [[i] for i in range(crossing.count)]

    @property
    def elide(self) -> bool:
        return self._crossing.objective.elide

    @cached_property
    def facts(self) -> Objective:
        projected = self._crossing.down(self._tensors, "update")
        return ProjectedObjective(self._crossing, projected)


def change_map(crossing: Crossing, update: list[Tensor], new: Sequence[Node | None]) -> None:
    """Gives a projection its new states, and treats the memory inside by its policy."""
    projection = crossing.projection
    wide_inside = projection.chain.total_scope == "all" or not crossing.objective.elide
    wide = wide_inside or projection.scope == "all"
    slots = list(zip(crossing.applied, crossing.states, new, strict=True))
    # A tensor that has learnt no map yet has nothing to carry over.
    newcomers = {i for i, node, entries in slots if entries and not entries.keys() <= node.keys()}
    changed = [
        i
        for i, node, entries in slots
        if entries is not None and (wide or (i not in newcomers and _inner_keys(node)))
    ]
    policy = projection.policy
    if policy == "keep":  # what has another shape now cannot be
        policy = "transport"
        changed = [i for i, node, entries in slots if i in changed and _resized(node, entries)]
    has_memory = any(_inner_keys(node) for node in crossing.state.nodes)
    if not changed or not has_memory:
        _write(crossing, new)
    elif policy == "reset" or (wide and newcomers):
        for i in range(crossing.count) if wide_inside else changed:
            node = crossing.state.nodes[i]
            for key in _inner_keys(node):
                del node[key]
        _write(crossing, new)
    elif wide:
        _transport(crossing, crossing, update, new)
    else:
        part = Crossing(
            projection, crossing.objective.select(changed), crossing.state.select(changed)
        )
        _transport(crossing, part, [update[i] for i in changed], new)


def _transport(
    crossing: Crossing, part: Crossing, update: list[Tensor], new: Sequence[Node | None]
) -> None:
    """Carries over the memory inside of some of the tensors."""
    projection = crossing.projection
    before = copy(part)
    before.states = old_states = [_own(node) for node in part.states]
    _write(crossing, new)
    old, current = _Space(before, update), _Space(part, update)
    params = part.facts()[0]

    def move(tensors: list[Tensor], kind: Kind) -> list[Tensor] | None:
        moved = projection.transport(
            part.projected(tensors), kind, params, old_states, part.states, part.settings
        )
        if moved is None:
            return None
        return part.inside(tensors, list(moved))

    _carry(projection.chain, part.memory(part.state), old, current, move)


def _carry(module: Module, state: State, old: _Space, new: _Space, move: Move) -> None:
    """Moves the memory of a module and its children from one space into another."""
    if not _carry_entries(module, state, old, move):
        state.shared.clear()
        for node in state.nodes:
            node.clear()
    elif isinstance(module, ProjectionBase):
        _carry_nested(module, state, old, new, move)
    else:
        for name, child in module.children.items():
            _carry(child, state.child(name), old, new, move)


def _carry_entries(module: Module, state: State, old: _Space, move: Move) -> bool:
    """Moves a module's own entries; False if there is one that cannot be moved."""
    if any(module.kinds.get(name) not in KEPT for name in state.shared):
        return False
    entries = [_own(node) for node in state.nodes]
    used = [i for i, own in enumerate(entries) if own]  # a route has memory of its tensors only
    moved: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(name for own in entries for name in own):
        kind = module.kinds.get(name, "opaque")
        if kind in KEPT:
            continue
        if kind == "opaque" or any(name not in entries[i] for i in used):
            return False
        like = entries[used[0]][name]
        lead = like.shape[:1] if kind == "history" else ()
        tensors = [
            own[name] if own else like.new_zeros((*lead, *old.facts.template[i].shape))
            for i, own in enumerate(entries)
        ]
        result = _move_history(tensors, move) if kind == "history" else move(tensors, kind)
        if result is None:
            return False
        if kind == "second":
            result = [_overflowed(*pair) for pair in zip(tensors, result, strict=True)]
        moved[name] = result
    for name, tensors in moved.items():
        for i in used:
            state.nodes[i][name] = tensors[i]
    return True


def _overflowed(before: Tensor, after: Tensor) -> Tensor:
    """Returns second moments with Inf where it is products of Inf that made NaN.

    Squares that overflow make an update of zero, as in torch; they are to stay what they are.
    """
    made = after.isnan() & ~before.isnan().any()
    return after.masked_fill(
        made, complex(torch.inf, torch.inf) if after.is_complex() else torch.inf
    )


def _own(node: Node) -> Node:
    return {name: value for name, value in node.items() if not isinstance(value, dict)}


def _move_history(tensors: list[Tensor], move: Move) -> list[Tensor] | None:
    rows = []
    for k in range(tensors[0].shape[0]):
        row = move([tensor[k] for tensor in tensors], "first")
        if row is None:
            return None
        rows.append(row)
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _carry_nested(
    projection: ProjectionBase, state: State, old: _Space, new: _Space, move: Move
) -> None:
    """Moves what is inside a projection: out of it by its map, over, and back in."""
    chain = projection.chain
    segments = projection.segments if old.elide else [(False, list(chain.children))]
    for elementwise, names in segments:
        if elementwise:
            for name in names:
                _carry(chain.children[name], state.child(INNER).child(name), old, new, move)
            continue
        before = Crossing(projection, old.facts, state)
        after = Crossing(projection, new.facts, state)
        inner_old = _Space(before, old.facts.template)
        inner_new = _Space(after, new.facts.template)

        def through(
            tensors: list[Tensor],
            kind: Kind,
            before: Crossing = before,
            after: Crossing = after,
        ) -> list[Tensor] | None:
            if kind not in ("first", "history") and projection.geometry == "linear":
                return None
            moved = move(before.up(tensors, "update"), kind)
            return None if moved is None else after.down(moved, "update")

        memory = after.memory(state)
        for name in names:
            _carry(chain.children[name], memory.child(name), inner_old, inner_new, through)


def _resized(node: Node, entries: Node | None) -> bool:
    """Whether a tensor of the map has another shape in the new states."""
    return any(
        isinstance(node.get(name), Tensor) and node[name].shape != value.shape
        for name, value in (entries or {}).items()
        if isinstance(value, Tensor)
    )


def _write(crossing: Crossing, new: Sequence[Node | None]) -> None:
    for node, entries in zip(crossing.states, new, strict=True):
        node.update(entries or {})


def _inner_keys(node: Node) -> list[str]:
    """The keys of a projection's node under which its modules keep their memory."""
    return [k for k, value in node.items() if isinstance(value, dict) and k != SHARED and value]
