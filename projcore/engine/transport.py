"""Transports state when a projection changes its map, by the kinds of its entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projcore._trees import SHARED
from projcore.core.module import Kind
from projcore.core.objective import Objective
from projcore.core.projection import INNER, ProjectionBase
from projcore.core.state import Entries
from projcore.ops import as_given, as_real, by_kind

if TYPE_CHECKING:
    from projcore.engine.crossing import Crossing
    from projcore.engine.nodes import Node, Site
    from projcore.engine.region import Region

KEPT: tuple[Kind, ...] = ("scalar", "fixed")

Move = Callable[["list[Tensor]", Kind], "list[Tensor] | None"]


def change_map(crossing: Crossing, update: list[Tensor], new: Sequence[Entries | None]) -> None:
    """Gives a projection its new states, and treats the state inside as its `on_refresh` says."""
    node, projection = crossing.node, crossing.projection
    region = node.region
    wide_inside = is_wide(projection, region)
    anew = [i for i, entries in zip(crossing.applied, new, strict=True) if INNER in (entries or {})]
    if anew and region is not None:
        for i in range(crossing.count) if wide_inside else anew:
            clear_inside(crossing.state.entries[i])
        region.bind(crossing.state.trees)  # its nodes know what state they have
    new = [None if entries is None else own_entries(entries) for entries in new]
    wide = wide_inside or projection.scope == "all"
    triples = list(zip(crossing.applied, crossing.states, new, strict=True))
    # A tensor without a map has no state inside to transport.
    without_map = {i for i, own, entries in triples if entries and not entries.keys() <= own.keys()}
    changed = [
        i
        for i, own, entries in triples
        if entries is not None and (wide or (i not in without_map and has_inside(own)))
    ]
    policy = projection.on_refresh
    if policy == "keep":  # which is impossible where the shape inside changes
        policy = "transport"
        changed = [i for i, own, entries in triples if i in changed and _resized(own, entries)]
    has_state = any(has_inside(each) for each in crossing.state.entries)
    if not changed or not has_state or region is None:
        _write(crossing, new)
    elif policy == "reset" or (wide and without_map):
        for i in range(crossing.count) if wide_inside else changed:
            clear_inside(crossing.state.entries[i])
        _write(crossing, new)
        region.bind(crossing.state.trees)  # its nodes refer to the removed state
    else:
        _transport(crossing, None if wide else changed, update, new, region)
        region.bind(crossing.state.trees)


def _transport(
    crossing: Crossing,
    changed: list[int] | None,
    update: list[Tensor],
    new: Sequence[Entries | None],
    region: Region,
) -> None:
    """Transports the state inside, of all tensors or of some."""
    part = crossing if changed is None else crossing.select(changed)
    indices = range(len(region.space)) if changed is None else changed
    tensors = update if changed is None else [update[i] for i in changed]
    old_states = [own_entries(each) for each in part.states]
    _write(crossing, new)
    params = part.facts()[0]

    def move(tensors: list[Tensor], kind: Kind) -> list[Tensor] | None:
        moved = part.projection.transport(
            part.projected(tensors), kind, params, old_states, part.states, part.settings
        )
        return None if moved is None else part.inside(tensors, list(moved))

    old = _InnerSpace(part, tensors, region, indices, old_states)
    current = _InnerSpace(part, tensors, region, indices, part.states)
    _transport_region(region, old, current, move)


@dataclass
class _InnerSpace:
    """The space inside a projection, by its old or its new map.

    Projecting the tensors costs a product, so that is done when they are first read.

    Attributes:
        crossing: The projection.
        tensors: The tensors outside.
        region: The region inside.
        indices: The indices of the inner tensors in that region.
        states: The projection's state, which holds its map.
    """

    crossing: Crossing
    tensors: list[Tensor]
    region: Region
    indices: Sequence[int]
    states: list[Entries]

    @cached_property
    def objective(self) -> Objective:
        projected = self.crossing.down(self.tensors, "update", self.states)
        return self.crossing.inside_objective(projected, self.region.space.select(self.indices))


def _transport_region(region: Region, old: _InnerSpace, new: _InnerSpace, move: Move) -> None:
    """Transports the state of the nodes of a region from one space to another."""
    seen: set[int] = set()
    for node in region.nodes:
        site = node.site
        if id(site) in seen:
            continue
        seen.add(id(site))
        if not _transport_entries(site, old, move):
            _shared(site).clear()
            for each in _nodes_of(site, old.indices):
                if each is not None:
                    clear(each)
        elif site.module.children:
            _transport_children(node, old, new, move)


def _nodes_of(site: Site, indices: Sequence[int]) -> list[Entries | None]:
    """Returns a module's state for tensors of the region; None for those of other modules."""
    found = dict(zip(site.space.region_indices, site.state.entries, strict=True))
    return [found.get(i) for i in indices]


def _shared(site: Site) -> Entries:
    """Returns the shared state of a module, without creating it."""
    state = site.state
    tree, keys = state._shared_location
    node = state.trees[tree]
    for key in (*keys, SHARED):
        node = node.get(key, {})
    return node


def _transport_entries(site: Site, old: _InnerSpace, move: Move) -> bool:
    """Transports a module's own entries; returns False if that is impossible for one of them."""
    kinds = site.module.kinds
    if any(kinds.get(name) not in KEPT for name in _shared(site)):
        return False
    nodes = _nodes_of(site, old.indices)
    entries = [{} if each is None else own_entries(each) for each in nodes]
    used = [i for i, own in enumerate(entries) if own]  # other modules may have the other tensors
    moved: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(name for own in entries for name in own):
        kind = kinds.get(name, "opaque")
        if kind in KEPT:
            continue
        if kind == "opaque" or any(name not in entries[i] for i in used):
            return False
        like = entries[used[0]][name]
        lead = like.shape[:1] if kind == "history" else ()
        tensors = [
            own[name] if own else like.new_zeros((*lead, *old.objective.template[i].shape))
            for i, own in enumerate(entries)
        ]
        result = _move_history(tensors, move) if kind == "history" else move(tensors, kind)
        if result is None:
            return False
        if kind == "second":
            result = _keep_overflow(tensors, result)
        moved[name] = result
    for name, tensors in moved.items():
        for i in used:
            node = nodes[i]
            assert node is not None
            node[name] = tensors[i]
    return True


def _keep_overflow(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """Returns second moments with Inf in place of a NaN that results from an Inf.

    Squares that overflow to Inf make an update of zero, as in torch, and must do so afterwards.
    """
    fill = by_kind(torch._foreach_norm, as_real(before))  # NaN if an element is NaN
    for clamp in (torch._foreach_clamp_min_, torch._foreach_clamp_max_):
        clamp(fill, 1.0)
    torch._foreach_mul_(fill, torch.inf)
    moved = [torch.where(x.isnan(), y, x) for x, y in zip(as_real(after), fill, strict=True)]
    return as_given(moved, after)


def _move_history(tensors: list[Tensor], move: Move) -> list[Tensor] | None:
    rows = []
    for k in range(tensors[0].shape[0]):
        row = move([tensor[k] for tensor in tensors], "first")
        if row is None:
            return None
        rows.append(row)
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _transport_children(node: Node, old: _InnerSpace, new: _InnerSpace, move: Move) -> None:
    """Transports the state inside a node; for a projection, its map leads out and back in."""
    for region in node.regions():
        sides = node.sides(old.objective, new.objective, old.indices)
        if sides is None:  # its modules run on the tensors of this space
            _transport_region(region, old, new, move)
            continue
        before, after, indices = sides
        if not indices:
            continue
        outer = move if len(indices) == len(old.indices) else _move_some(move, indices, old)

        def through(
            tensors: list[Tensor],
            kind: Kind,
            before: Crossing = before,
            after: Crossing = after,
            outer: Move = outer,
        ) -> list[Tensor] | None:
            if kind not in ("first", "history") and before.projection.geometry == "linear":
                return None
            moved = outer(before.up(tensors, "update"), kind)
            return None if moved is None else after.down(moved, "update")

        inner = before.indices_inside
        inner_old = _InnerSpace(before, before.objective.template, region, inner, before.states)
        inner_new = _InnerSpace(after, after.objective.template, region, inner, after.states)
        _transport_region(region, inner_old, inner_new, through)


def _move_some(move: Move, indices: Sequence[int], old: _InnerSpace) -> Move:
    """Returns a function that moves some of the tensors of a space, with zeros for the others."""

    def moves(tensors: list[Tensor], kind: Kind) -> list[Tensor] | None:
        full = [torch.zeros_like(tensor) for tensor in old.objective.template]
        for i, tensor in zip(indices, tensors, strict=True):
            full[i] = tensor
        moved = move(full, kind)
        return None if moved is None else [moved[i] for i in indices]

    return moves


def is_wide(projection: ProjectionBase, region: Region | None) -> bool:
    """Whether a module inside a projection may have state that depends on several tensors."""
    if region is None:
        return projection.chain.total_scope == "all"
    return any("all" in (node.module.scope, node.module.total_scope) for node in region.walk())


def _resized(own: Entries, entries: Entries | None) -> bool:
    """Whether a tensor of the map has another shape in the new state."""
    return any(
        isinstance(own.get(name), Tensor) and own[name].shape != value.shape
        for name, value in (entries or {}).items()
        if isinstance(value, Tensor)
    )


def _write(crossing: Crossing, new: Sequence[Entries | None]) -> None:
    for own, entries in zip(crossing.states, new, strict=True):
        own.update(entries or {})


def own_entries(node: Entries) -> Entries:
    """Returns the entries of a module for a tensor, without those of its children."""
    return {name: value for name, value in node.items() if not isinstance(value, dict)}


def has_inside(node: Entries) -> bool:
    """Whether the modules inside a projection have state under its node."""
    return any(
        key != SHARED and isinstance(value, dict) and _has_entries(value)
        for key, value in node.items()
    )


def clear_inside(node: Entries) -> None:
    """Removes the state of the modules inside a projection; the dicts themselves stay."""
    for key, value in node.items():
        if isinstance(value, dict) and key != SHARED:
            clear(value)


def forget(node: Entries) -> None:
    """Removes the state of a tensor that was projected, and is not any more."""
    own = own_entries(node)
    if own:
        clear_inside(node)
    for key in own:
        del node[key]


def clear(node: Entries) -> None:
    """Removes all entries of a node and of those below it; the dicts themselves stay."""
    for key in own_entries(node):
        del node[key]
    for value in node.values():
        clear(value)


def _has_entries(node: Entries) -> bool:
    return any(not isinstance(v, dict) or _has_entries(v) for v in node.values())
