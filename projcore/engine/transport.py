"""Carries state over when a projection changes its map, by the kinds of its entries."""

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
from projcore.core.state import Node as Entries
from projcore.ops import as_given, as_real, by_kind

if TYPE_CHECKING:
    from projcore.engine.crossing import Crossing
    from projcore.engine.nodes import Node, Site
    from projcore.engine.region import Region

KEPT: tuple[Kind, ...] = ("scalar", "fixed")

Move = Callable[["list[Tensor]", Kind], "list[Tensor] | None"]


def change_map(crossing: Crossing, update: list[Tensor], new: Sequence[Entries | None]) -> None:
    """Gives a projection its new states, and treats the state inside by its policy."""
    node, projection = crossing.node, crossing.projection
    region = node.region
    wide_inside = is_wide(projection, region)
    anew = [i for i, entries in zip(crossing.applied, new, strict=True) if INNER in (entries or {})]
    if anew and region is not None:
        for i in range(crossing.count) if wide_inside else anew:
            clear_inside(crossing.state.nodes[i])
        region.bind(crossing.state.trees)  # its nodes know what state they have
    new = [None if entries is None else own_entries(entries) for entries in new]
    wide = wide_inside or projection.scope == "all"
    slots = list(zip(crossing.applied, crossing.states, new, strict=True))
    # A tensor that has learnt no map yet has nothing to carry over.
    newcomers = {i for i, own, entries in slots if entries and not entries.keys() <= own.keys()}
    changed = [
        i
        for i, own, entries in slots
        if entries is not None and (wide or (i not in newcomers and has_inside(own)))
    ]
    policy = projection.on_refresh
    if policy == "keep":  # what has another shape now cannot be
        policy = "transport"
        changed = [i for i, own, entries in slots if i in changed and _resized(own, entries)]
    has_state = any(has_inside(each) for each in crossing.state.nodes)
    if not changed or not has_state or region is None:
        _write(crossing, new)
    elif policy == "reset" or (wide and newcomers):
        for i in range(crossing.count) if wide_inside else changed:
            clear_inside(crossing.state.nodes[i])
        _write(crossing, new)
        region.bind(crossing.state.trees)  # its nodes know what state they have
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
    """Carries over the state inside, of all tensors or of some."""
    part = crossing if changed is None else crossing.select(changed)
    places = range(len(region.space)) if changed is None else changed
    tensors = update if changed is None else [update[i] for i in changed]
    old_states = [own_entries(each) for each in part.states]
    _write(crossing, new)
    params = part.facts()[0]

    def move(tensors: list[Tensor], kind: Kind) -> list[Tensor] | None:
        moved = part.projection.transport(
            part.projected(tensors), kind, params, old_states, part.states, part.settings
        )
        return None if moved is None else part.inside(tensors, list(moved))

    old = _Side(part, tensors, region, places, old_states)
    current = _Side(part, tensors, region, places, part.states)
    _carry(region, old, current, move)


@dataclass
class _Side:
    """The space inside, by the old map or the new.

    Its tensors cost a product, so they are computed when first asked for.
    """

    crossing: Crossing
    tensors: list[Tensor]
    region: Region
    places: Sequence[int]
    states: list[Entries]

    @cached_property
    def objective(self) -> Objective:
        projected = self.crossing.down(self.tensors, "update", self.states)
        return self.crossing.inside_objective(projected, self.region.space.select(self.places))


def _carry(region: Region, old: _Side, new: _Side, move: Move) -> None:
    """Moves the state of the nodes of a region from one space into another."""
    seen: set[int] = set()
    for node in region.nodes:
        site = node.site
        if id(site) in seen:
            continue
        seen.add(id(site))
        if not _carry_entries(site, old, move):
            _shared(site).clear()
            for each in _of(site, old.places):
                if each is not None:
                    clear(each)
        elif site.module.children:
            _carry_children(node, old, new, move)


def _of(site: Site, places: Sequence[int]) -> list[Entries | None]:
    """The entries of a module at some places of the region; None for tensors of others."""
    found = dict(zip(site.space.places, site.state.nodes, strict=True))
    return [found.get(place) for place in places]


def _shared(site: Site) -> Entries:
    """What a module keeps for its space as a whole; to look for it makes no entry."""
    state = site.state
    tree, keys = state._anchor
    node = state.trees[tree]
    for key in (*keys, SHARED):
        node = node.get(key, {})
    return node


def _carry_entries(site: Site, old: _Side, move: Move) -> bool:
    """Moves a module's own entries; False if there is one that cannot be moved."""
    kinds = site.module.kinds
    if any(kinds.get(name) not in KEPT for name in _shared(site)):
        return False
    nodes = _of(site, old.places)
    entries = [{} if each is None else own_entries(each) for each in nodes]
    used = [i for i, own in enumerate(entries) if own]  # where several modules share the tensors
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
            result = _overflowed(tensors, result)
        moved[name] = result
    for name, tensors in moved.items():
        for i in used:
            node = nodes[i]
            assert node is not None
            node[name] = tensors[i]
    return True


def _overflowed(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """Returns second moments with Inf where it is products of Inf that made NaN.

    Squares that overflow make an update of zero, as in torch; they are to stay what they are.
    """
    fill = by_kind(torch._foreach_norm, as_real(before))  # NaN if one of the numbers is
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


def _carry_children(node: Node, old: _Side, new: _Side, move: Move) -> None:
    """Moves what is inside a node: of a projection out by its map, over, and back in."""
    for region in node.regions():
        sides = node.sides(old.objective, new.objective, old.places)
        if sides is None:  # it runs modules on the tensors that it is given itself
            _carry(region, old, new, move)
            continue
        before, after, where = sides
        if not where:
            continue
        outer = move if len(where) == len(old.places) else _of_some(move, where, old)

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

        places = before.places_inside
        inner_old = _Side(before, before.objective.template, region, places, before.states)
        inner_new = _Side(after, after.objective.template, region, places, after.states)
        _carry(region, inner_old, inner_new, through)


def _of_some(move: Move, where: Sequence[int], old: _Side) -> Move:
    """Returns what moves some of the tensors of a space, with zeros for the others."""

    def moves(tensors: list[Tensor], kind: Kind) -> list[Tensor] | None:
        full = [torch.zeros_like(tensor) for tensor in old.objective.template]
        for i, tensor in zip(where, tensors, strict=True):
            full[i] = tensor
        moved = move(full, kind)
        return None if moved is None else [moved[i] for i in where]

    return moves


def is_wide(projection: ProjectionBase, region: Region | None) -> bool:
    """Whether something inside a projection, as it is planned, keeps state of several tensors."""
    if region is None:
        return projection.chain.total_scope == "all"
    return any("all" in (node.module.scope, node.module.total_scope) for node in region.walk())


def _resized(own: Entries, entries: Entries | None) -> bool:
    """Whether a tensor of the map has another shape in the new states."""
    return any(
        isinstance(own.get(name), Tensor) and own[name].shape != value.shape
        for name, value in (entries or {}).items()
        if isinstance(value, Tensor)
    )


def _write(crossing: Crossing, new: Sequence[Entries | None]) -> None:
    for own, entries in zip(crossing.states, new, strict=True):
        own.update(entries or {})


def own_entries(node: Entries) -> Entries:
    """The entries of a module for a tensor, without those of its children."""
    return {name: value for name, value in node.items() if not isinstance(value, dict)}


def has_inside(node: Entries) -> bool:
    """Whether modules inside keep something under a projection's node."""
    return any(
        key != SHARED and isinstance(value, dict) and _has_entries(value)
        for key, value in node.items()
    )


def clear_inside(node: Entries) -> None:
    """Removes what modules inside keep under a projection's node; the dicts themselves stay."""
    for key, value in node.items():
        if isinstance(value, dict) and key != SHARED:
            clear(value)


def forget(node: Entries) -> None:
    """Removes what was kept for a tensor that was projected, now that it passes."""
    own = own_entries(node)
    if own:
        clear_inside(node)
    for key in own:
        del node[key]


def clear(node: Entries) -> None:
    """Removes all entries of a node and of those below; the dicts themselves stay."""
    for key in own_entries(node):
        del node[key]
    for value in node.values():
        clear(value)


def _has_entries(node: Entries) -> bool:
    return any(not isinstance(v, dict) or _has_entries(v) for v in node.values())
