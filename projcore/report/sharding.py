"""What sharding makes of an optimizer: the state of each process, and what a step sends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from projcore._shards import by_rows
from projcore.core.module import Module, Need
from projcore.engine.flat import module_path
from projcore.engine.gather import NO_WEIGHT, Gather, balance, weight_of
from projcore.engine.making import Plan, all_parameters
from projcore.engine.plan import Rate
from projcore.engine.region import Region
from projcore.engine.shards import Part, Shards, Transfer
from projcore.engine.tree import first_unsharded, takes_shards
from projcore.errors import ArgumentError
from projcore.report.sums import step_sums
from projcore.values import require

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


@dataclass(frozen=True)
class Sharding:
    """What each of several processes keeps and sends, where parameters are sharded by rows.

    So does FSDP2, which sends beside that what the model's passes need: in each step three times
    the parameters, less one part, from every process.

    Attributes:
        state: The bytes of state in each process.
        sent: The bytes that each process sends to others in a step; the same in one that refreshes
            a map, as owners have full matrices.
        sums: The bytes of each vector that processes sum in a step, as of norms; included in
            `sent`. Sums whose number depends on values, as in a line search, are left out.
        owners: Of each parameter, the process that owns it; None where each keeps its part.
    """

    state: tuple[int, ...]
    sent: tuple[int, ...]
    sums: tuple[int, ...]
    owners: tuple[int | None, ...]


def estimate(optimizer: Optimizer, ranks: int) -> Sharding:
    """Returns what so many processes would keep and send; see `Optimizer.sharding`."""
    require("Optimizer.sharding", "ranks", ranks, minimum=1)
    refused = first_unsharded(optimizer.module)
    if refused is not None:
        raise ArgumentError(
            f"{refused} needs all full parameters at once, so they cannot be sharded. Use other "
            "modules, or DistributedDataParallel, which keeps full parameters."
        )
    plan = optimizer.plan_of(optimizer.param_groups)
    parameters = all_parameters(optimizer.param_groups)
    shards = [
        Shards(p.shape, _Line((ranks,)), (_Rows() if p.ndim else _Whole(),)) for p in parameters
    ]
    owners: list[int | None] = [None] * len(parameters)
    sent, paths = [0] * ranks, list(_paths(plan.region))
    loads = [NO_WEIGHT] * ranks
    expected = plan.expected(len(parameters))
    for path, _, places in paths:
        new = [place for place in places if owners[place] is None]
        weights = [
            weight_of(
                parameters[place],
                (value for key, value in expected[place].items() if _is_under(key, path)),
            )
            for place in new
        ]
        found = balance([parameters[place].shape for place in new], weights, loads)
        for place, owner in zip(new, found, strict=True):
            owners[place] = owner
    for needs, places in _visits(plan.region):
        mine = [owners[place] for place in places]
        for rank in range(ranks):
            way = Transfer(
                [shards[place] for place in places],
                [parameters[place].dtype for place in places],
                mine,  # type: ignore[arg-type]
                _Team(rank, ranks),  # type: ignore[arg-type]
            )
            sent[rank] += sum(Gather(needs, way).sent)
    state = _state(plan, shards, owners, paths, ranks)
    reductions = [
        reduction
        for sums in step_sums(optimizer, plan, by_rows(parameters, ranks))
        for reduction in sums.reductions
    ]
    of_sums = sum(each.sent for each in reductions)
    return Sharding(
        state=tuple(state),
        sent=tuple(count + of_sums for count in sent),
        sums=tuple(each.bytes for each in reductions),
        owners=tuple(owners),
    )


def _paths(region: Region) -> Iterator[tuple[str, Module, list[int]]]:
    """Yields position and parameters of each module that needs tensors unsharded, with it."""
    for node in region.nodes:
        if isinstance(node.module, Rate):
            continue
        space = node.site.space
        if takes_shards(node.module):
            for inner in node.regions():
                yield from _paths(inner)
        else:
            yield (
                space.path,
                node.module,
                sorted({i for source in space.parameter_indices for i in source}),
            )


def _visits(region: Region) -> Iterator[tuple[frozenset[Need], list[int]]]:
    """Yields parameters that owners get at once, with what modules there need; see `Gathered`."""
    found: list[tuple[str, frozenset[Need], list[int]]] = []
    for node in region.nodes:
        if isinstance(node.module, Rate):
            continue
        if takes_shards(node.module):
            yield from _joined(found)
            found = []
            for inner in node.regions():
                yield from _visits(inner)
            continue
        space = node.site.space
        places = sorted({i for source in space.parameter_indices for i in source})
        if found and found[-1][0] == space.path:  # of another group
            places = sorted({*found.pop()[2], *places})
        found.append((space.path, node.module.total_needs, places))
    yield from _joined(found)


def _joined(
    found: Sequence[tuple[str, frozenset[Need], list[int]]],
) -> Iterator[tuple[frozenset[Need], list[int]]]:
    for _, same in itertools.groupby(found, key=lambda each: each[2]):
        several = list(same)
        yield frozenset[Need]().union(*(needs for _, needs, _ in several)), several[0][2]


def _state(
    plan: Plan,
    shards: list[Shards],
    owners: list[int | None],
    paths: list[tuple[str, Module, list[int]]],
    ranks: int,
) -> list[int]:
    """Returns the bytes of state in each process: that of owners in full, the rest in parts."""
    state = [0] * ranks
    for place, entries in enumerate(plan.expected(len(shards))):
        above = [path for path, _, places in paths if place in places]
        for key, value in entries.items():
            if not isinstance(value, Tensor):
                continue
            if any(_is_under(key, path) for path in above):
                owner = owners[place]
                assert owner is not None
                state[owner] += value.nbytes
                continue
            for rank, count in enumerate(_bytes_of_parts(value, shards[place])):
                state[rank] += count
    return state


def _is_under(key: str, path: str) -> bool:
    """Whether an entry is of the module at a position, or of one inside."""
    own = module_path(key)
    return own == path or own.startswith(f"{path}/")


def _bytes_of_parts(value: Tensor, shards: Shards) -> list[int]:
    """Returns the bytes of an entry in each process, which has a part of its parameter's rows.

    Of an entry without rows, as means over columns are, it has a part of the longest dimension.
    """
    shape = shards.shape
    tail = value.shape[value.ndim - len(shape) :] if value.ndim >= len(shape) else ()
    if tail and tail[0] == shape[0]:
        return [_count(part) * value.nbytes // (shape.numel() or 1) for part in shards.parts]
    if value.ndim < 2 or value.numel() == 1:
        return [value.nbytes] * len(shards.parts)
    longest = _Rows(max(range(value.ndim), key=lambda i: value.shape[i]))
    parts = Shards(value.shape, shards.mesh, (longest,)).parts
    return [_count(part) * value.dtype.itemsize for part in parts]


def _count(part: Part) -> int:
    return math.prod(each.stop - each.start for each in part)


@dataclass(frozen=True)
class _Line:
    """The facts of a mesh of one dimension that `Shards` reads."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Team:
    """The facts of its processes that `Transfer` reads."""

    me: int
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class _Rows:
    """A placement that shards rows, or another dimension."""

    dim: int = 0

    def is_replicate(self) -> bool:
        return False

    def is_partial(self) -> bool:
        return False


class _Whole:
    """A placement that shards nothing."""

    def is_replicate(self) -> bool:
        return True

    def is_partial(self) -> bool:
        return False
