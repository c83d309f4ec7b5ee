"""The state of sharded parameters in checkpoints, which is sharded even if one process owns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore.engine.flat import module_path
from projcore.engine.gather import Gathered, gathered
from projcore.engine.local import OnParts
from projcore.engine.region import Region
from projcore.engine.shards import Shards, Transfer
from projcore.ops import is_sharded, local, unsharded

Entries = dict[str, Any]

NOTHING = torch.empty(0, device="cpu")


class Fact(NamedTuple):
    """The facts about a state entry of one process that the others need.

    Attributes:
        tensor: The index of its tensor in the node.
        place: The index of its parameter in the optimizer.
        key: Its name.
        shape: Its shape; None for a number or a 0-d tensor.
        value: Its dtype; for a number or a 0-d tensor, the value.
        order: Its dimensions, from the largest stride to the smallest. Products of matrices in
            another order are rounded differently.
    """

    tensor: int
    place: int
    key: str
    shape: tuple[int, ...] | None
    value: Any
    order: tuple[int, ...] = ()


def share(region: Region, state: Mapping[int, Entries]) -> dict[int, Entries]:
    """Returns the state with entries of owners sharded by rows over the processes.

    Numbers and 0-d tensors are then in all processes. All processes must call it, and then have the
    same entries in the same order, which torch needs to gather them.

    Args:
        region: The region of the parameters.
        state: The state of each parameter in this process, by its index.
    """
    shared = {place: dict(entries) for place, entries in state.items()}
    for node in region.walk():
        if isinstance(node, Gathered):
            _share(node, shared)
        elif isinstance(node, OnParts):
            _wrap(node, shared)
    return {place: dict(sorted(shared[place].items())) for place in sorted(shared)}


def announce(region: Region, state: Mapping[Tensor, Entries], parameters: Sequence[Tensor]) -> None:
    """Adds empty tensors for entries of other processes, as torch expects their names.

    `torch.distributed.checkpoint` does so to read state that was saved under flat names.

    Args:
        region: The region of the parameters.
        state: The state in this process.
        parameters: The parameters, by their indices.
    """
    for node in gathered(region):
        places = [place for (place,) in node.space.parameter_indices]
        own = [
            (place, key)
            for place in (places[i] for i in node.transfer.own)
            for key in state[parameters[place]]
            if _is_of(key, node.paths)
        ]
        for found in node.transfer.team.gathered(own):
            for place, key in found:
                state[parameters[place]].setdefault(key, NOTHING)


def _is_of(key: str, paths: Sequence[str]) -> bool:
    """Whether an entry of that name is of the modules at some positions, or of what is inside."""
    path = module_path(key)
    return any(path == each or path.startswith(f"{each}/") for each in paths)


def _wrap(node: OnParts, state: dict[int, Entries]) -> None:
    """Wraps entries of which each process has a local shard into sharded tensors."""
    for template, (place,) in zip(node.space.template, node.space.parameter_indices, strict=True):
        entries = state.get(place, {})
        for key in [key for key in entries if _is_of(key, [node.space.path])]:
            value = entries[key]
            lead = _lead(value, local(template))
            if lead is not None:
                entries[key] = _shards(template, value.shape[:lead]).wrap(value)


def _lead(value: Any, template: Tensor) -> int | None:
    """The number of dimensions of an entry before those of its tensor; None if shapes differ."""
    if not isinstance(value, Tensor) or value.shape[value.ndim - template.ndim :] != template.shape:
        return None
    return value.ndim - template.ndim


def _shards(template: Tensor, lead: Sequence[int]) -> Shards:
    """Returns the sharding of an entry with some dimensions before those of its tensor."""
    shards = Shards.of(template)
    placements = [
        each if each.is_replicate() or not lead else _moved(each, len(lead))
        for each in shards.placements
    ]
    return Shards(torch.Size([*lead, *shards.shape]), shards.mesh, tuple(placements))


def _moved(placement: Any, lead: int) -> Any:
    """Returns the placement that shards the same dimension after `lead` others."""
    extra = {key: getattr(placement, key) for key in ("split_factor",) if hasattr(placement, key)}
    return type(placement)(placement.dim + lead, **extra)


def _share(node: Gathered, state: dict[int, Entries]) -> None:
    team = node.transfer.team
    own: dict[tuple[int, str], Any] = {}
    facts = []
    for tensor in node.transfer.own:
        (place,) = node.space.parameter_indices[tensor]
        for key in sorted(key for key in state.get(place, ()) if _is_of(key, node.paths)):
            value = state[place][key]
            if isinstance(value, Tensor) and value.ndim:
                order = tuple(sorted(range(value.ndim), key=lambda d: -value.stride()[d]))
                value = own[place, key] = value.to(team.device).permute(order)
                facts.append(Fact(tensor, place, key, tuple(value.shape), value.dtype, order))
            else:
                facts.append(Fact(tensor, place, key, None, value))
    every = [(k, fact) for k, found in enumerate(team.gathered(facts)) for fact in found]
    for (place,) in node.space.parameter_indices:  # empty tensors, which `announce` put there, go
        entries = state.setdefault(place, {})
        for key in [key for key in entries if _is_of(key, node.paths)]:
            del entries[key]
    for _, fact in every:
        if fact.shape is None:
            state[fact.place][fact.key] = fact.value
    wide = [(k, fact) for k, fact in every if fact.shape is not None]
    transfer = Transfer(
        [
            Shards.by_rows(torch.Size(fact.shape or ()), node.transfer.shards[fact.tensor])
            for _, fact in wide
        ],
        [fact.value for _, fact in wide],
        [k for k, _ in wide],
        team,
    )
    mine = [own[wide[i][1].place, wide[i][1].key] for i in transfer.own]
    parts = map(Shards.wrap, transfer.shards, transfer.hand_out(mine))
    for (_, fact), shared in zip(wide, parts, strict=True):
        state[fact.place][fact.key] = shared.permute(_inverse(fact.order))


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def settle(region: Region, state: Sequence[Entries], expected: Sequence[Mapping[str, Any]]) -> None:
    """Moves state that any number of processes saved to the processes that use it here.

    Args:
        region: The region of the parameters.
        state: The saved state of each parameter, full or sharded; it is replaced.
        expected: The state of each here, as tensors without storage.
    """
    keepers: dict[int, list[tuple[Gathered, int]]] = {}
    for node in gathered(region):
        for tensor, (place,) in enumerate(node.space.parameter_indices):
            keepers.setdefault(place, []).append((node, tensor))
    parts = {
        (place, node.space.path): template
        for node in region.walk()
        if isinstance(node, OnParts)
        for template, (place,) in zip(
            node.space.template, node.space.parameter_indices, strict=True
        )
    }
    for place, entries in enumerate(state):
        for key in sorted(entries):
            found = [(node, i) for node, i in keepers.get(place, ()) if _is_of(key, node.paths)]
            template = parts.get((place, module_path(key)))
            if template is not None:
                entries[key] = _part(entries[key], template)
            elif found:
                full = _full(entries.pop(key))
                if any(i in node.transfer.own for node, i in found):
                    entries[key] = full
            elif isinstance(entries[key], Tensor):
                entries[key] = _as_expected(entries[key], expected[place].get(key))


def _full(value: Any) -> Any:
    """Returns an unsharded tensor, with the same strides."""
    full = unsharded(value)
    if not isinstance(value, Tensor) or full.stride() == value.stride():
        return full
    return torch.empty_strided(
        value.shape, value.stride(), dtype=full.dtype, device=full.device
    ).copy_(full)


def _part(value: Any, template: Tensor) -> Any:
    """Returns this process's shard of an entry, full or sharded, by the sharding of its tensor."""
    lead = _lead(value, template)
    return value if lead is None else local(_lying(value, _shards(template, value.shape[:lead])))


def _as_expected(value: Any, expected: Any) -> Any:
    """Returns an entry with the expected sharding, or unsharded."""
    if expected is None or not is_sharded(expected):
        return value if expected is None else unsharded(value)
    return _lying(value, Shards.of(expected)) if value.shape == expected.shape else value


def _lying(value: Tensor, shards: Shards) -> Tensor:
    """Returns a tensor, full or sharded, with that sharding."""
    if is_sharded(value) and Shards.of(value) == shards:
        return value
    part = shards.part(shards.mesh.get_coordinate())
    return shards.wrap(unsharded(value)[part].clone())
