"""State of sharded parameters in checkpoints: sharded too, whatever the processes keep of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore.engine.gather import Gathered, gathered
from projcore.engine.region import Region
from projcore.engine.shards import Shards, Transfer
from projcore.ops import is_sharded, unsharded

Entries = dict[str, Any]


class Fact(NamedTuple):
    """What others must know of an entry that one process keeps.

    Attributes:
        tensor: Of which tensor of the node it is.
        place: The place of that parameter in the optimizer.
        key: Its name.
        shape: Its shape; None of a number, or a 0-d tensor.
        value: Its dtype; of a number or a 0-d tensor, that.
        order: In which order its dimensions lie in memory, the largest stride first. Products of
            matrices in another order are rounded otherwise.
    """

    tensor: int
    place: int
    key: str
    shape: tuple[int, ...] | None
    value: Any
    order: tuple[int, ...] = ()


def share(region: Region, state: dict[int, Entries]) -> None:
    """Has each process hold a part of what owners keep: of each entry, some of its rows.

    Numbers and 0-d tensors are then in all processes. All of them must call it.

    Args:
        region: What runs on the parameters.
        state: The state of each parameter, by its place, as this process has it.
    """
    for node in gathered(region):
        _share(node, state)


def _share(node: Gathered, state: dict[int, Entries]) -> None:
    team = node.transfer.team
    own: dict[tuple[int, str], Any] = {}
    facts = []
    for tensor in node.transfer.own:
        (place,) = node.space.sources[tensor]
        for key in sorted(filter(node.keeps, state.get(place, {}))):
            value = state[place][key]
            if isinstance(value, Tensor) and value.ndim:
                order = tuple(sorted(range(value.ndim), key=lambda d: -value.stride()[d]))
                value = own[place, key] = value.to(team.device).permute(order)
                facts.append(Fact(tensor, place, key, tuple(value.shape), value.dtype, order))
            else:
                facts.append(Fact(tensor, place, key, None, value))
    every = [(k, fact) for k, found in enumerate(team.gathered(facts)) for fact in found]
    for _, fact in every:
        state.setdefault(fact.place, {})
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
    for (_, fact), shared in zip(wide, transfer.hand_out(mine), strict=True):
        state[fact.place][fact.key] = shared.permute(_inverse(fact.order))


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def settle(region: Region, state: Sequence[Entries], expected: Sequence[Mapping[str, Any]]) -> None:
    """Takes what was saved, by any number of processes, to where it is kept here.

    Args:
        region: What runs on the parameters.
        state: What was saved of each parameter, whole or sharded; it is replaced.
        expected: What is kept of each here, as tensors without storage.
    """
    keepers: dict[int, list[tuple[Gathered, int]]] = {}
    for node in gathered(region):
        for tensor, (place,) in enumerate(node.space.sources):
            keepers.setdefault(place, []).append((node, tensor))
    for place, entries in enumerate(state):
        for key in sorted(entries):
            found = [(node, i) for node, i in keepers.get(place, ()) if node.keeps(key)]
            if found:
                whole = _whole(entries.pop(key))
                if any(i in node.transfer.own for node, i in found):
                    entries[key] = whole
            elif isinstance(entries[key], Tensor):
                entries[key] = _as_expected(entries[key], expected[place].get(key))


def _whole(value: Any) -> Any:
    """Returns a tensor put together, its dimensions in the same order in memory."""
    whole = unsharded(value)
    if not isinstance(value, Tensor) or whole.stride() == value.stride():
        return whole
    return torch.empty_strided(
        value.shape, value.stride(), dtype=whole.dtype, device=whole.device
    ).copy_(whole)


def _as_expected(value: Any, expected: Any) -> Any:
    """Returns a tensor sharded as is expected, or whole."""
    if expected is None or not is_sharded(expected) or not value.ndim:
        return value if expected is None else unsharded(value)
    shards = Shards.of(expected)
    if is_sharded(value) and Shards.of(value) == shards:
        return value
    whole = unsharded(value)
    if whole.shape != shards.shape:
        return value  # it is refused later, by name
    return shards.wrap(whole[shards.part(shards.mesh.get_coordinate())].clone())
