"""Which part of a sharded tensor is where, who owns what, and what that costs on paper."""

from __future__ import annotations

import itertools
import math
import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("torch has no distributed part", allow_module_level=True)

from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from projcore import Optimizer
from projcore._shards import by_rows
from projcore.engine.gather import Owners, balance
from projcore.engine.shards import Shards
from projcore.errors import ArgumentError
from projcore.report.sums import step_sums


def lying(shape: tuple[int, ...], mesh: tuple[int, ...], *placements: Any) -> Shards:
    return Shards(torch.Size(shape), SimpleNamespace(shape=mesh), placements)


@pytest.mark.parametrize(
    ("mesh", "placements"),
    [
        ((2,), (Shard(0),)),
        ((3,), (Shard(1),)),
        ((8,), (Shard(0),)),
        ((2, 3), (Replicate(), Shard(0))),
        ((2, 2), (Shard(0), Shard(1))),
        ((2, 2), (Shard(0), Shard(0))),
        ((2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    ],
)
def test_parts_are_those_of_torch(mesh: tuple[int, ...], placements: tuple[Any, ...]) -> None:
    shape = (12, 7) if isinstance(placements[0], _StridedShard) else (7, 5)
    parts = lying(shape, mesh, *placements).parts
    for part, place in zip(parts, itertools.product(*map(range, mesh)), strict=True):
        sizes, begin = _compute_local_shape_and_global_offset(shape, mesh, list(place), placements)
        assert tuple(each.stop - each.start for each in part) == sizes
        if all(sizes):
            assert tuple(each.start for each in part) == begin


def test_each_element_comes_once_to_its_owner() -> None:
    for placements in ((Replicate(), Shard(0)), (Shard(1), Replicate()), (Shard(0), Shard(1))):
        shards = lying((7, 5), (2, 3), *placements)
        for owner in range(6):
            found = torch.zeros(7, 5)
            for rank, part in enumerate(shards.parts):
                if shards.sender(rank, owner):
                    found[part] += 1
            assert found.eq(1).all()


def test_what_is_no_block_is_refused() -> None:
    strided = lying((8, 2), (2,), _StridedShard(0, split_factor=2))
    with pytest.raises(ArgumentError, match="is not one block of it"):
        strided.parts  # noqa: B018 (it is computed when asked for)
    with pytest.raises(ArgumentError, match="its values are sums over processes"):
        lying((8, 2), (2,), Partial()).parts  # noqa: B018


def test_owners_exchange_at_the_end() -> None:
    """Without that one would have 7 of 12."""
    loads = [(0, 0)] * 2
    counts = [3, 3, 2, 2, 2]
    owners = balance([(each,) for each in counts], [(each, 1) for each in counts], loads)
    assert sorted(zip(owners, counts, strict=True)) in (
        [(0, 2), (0, 2), (0, 2), (1, 3), (1, 3)],
        [(0, 3), (0, 3), (1, 2), (1, 2), (1, 2)],
    )
    assert [count for count, _ in loads] == [6, 6]


def test_owners_get_about_the_same() -> None:
    loads = [(0, 0)] * 3
    shapes = [(10,), (1,), (7,), (5, 1), (5, 1), (2,)]
    owners = balance(shapes, [(0, math.prod(shape)) for shape in shapes], loads)
    counts = [count for _, count in loads]
    assert sum(counts) == 30
    assert max(counts) - min(counts) <= 2
    for k, count in enumerate(counts):
        mine = [shape for shape, owner in zip(shapes, owners, strict=True) if owner == k]
        assert sum(map(math.prod, mine)) == count
    alternating = [(2, 3), (3, 2)] * 4
    owners = balance(alternating, [(8, 6)] * 8, [(0, 0), (0, 0)])
    assert sorted(zip(alternating, owners, strict=True)) == [
        *[((2, 3), 0)] * 2,
        *[((2, 3), 1)] * 2,
        *[((3, 2), 0)] * 2,
        *[((3, 2), 1)] * 2,
    ]


def test_owners_are_chosen_by_their_state() -> None:
    """Of the largest one, there may be the least state."""
    shapes, weights = [(100,), (3,), (3,)], [(4, 100), (8, 3), (8, 3)]
    assert balance(shapes, weights, [(0, 0), (0, 0)]) == [0, 0, 1]
    model = torch.nn.ParameterList([torch.ones(2, 50), torch.ones(12, 12), torch.ones(12, 12)])
    found = Optimizer(model, "soap_rotation([adam()])", lr=0.01).sharding(2)
    assert found.owners == (0, 1, 1)


def space(*shapes: tuple[int, ...], begin: int = 0) -> Any:
    return SimpleNamespace(
        parameter_indices=[(begin + i,) for i in range(len(shapes))],
        template=[torch.empty(shape, device="meta") for shape in shapes],
    )


def test_copied_owners_go_on_as_they_would_have() -> None:
    owners = Owners()
    team: Any = SimpleNamespace(ranks=[0, 1])
    owners._teams["mesh"] = team
    assert owners.assign(space((5,), (2,)), "mesh", lambda new: [(0, 5), (0, 2)]) == [0, 1]
    copied = pickle.loads(pickle.dumps(owners))
    copied._teams["mesh"] = team
    more, weights = space((2,), (2,), begin=2), [(0, 2), (0, 2)]
    for each in (owners, copied):
        assert each.assign(more, "mesh", lambda new: weights) == [1, 1]
        assert each.assign(space((5,)), "mesh", lambda new: weights) == [0]


def test_sharding_on_paper() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
    found = Optimizer(model, "heavy_ball(0.9); orthogonalize()", lr=0.01).sharding(2)
    assert found.state == (4 * 4 * 8 * 4 + 4 * 8,) * 2  # halves of momenta, and four counts
    # Each sends the four rows that it has of each of the other's two matrices, and back.
    assert found.sent == (2 * 2 * 4 * 8 * 4,) * 2
    assert sorted(found.owners) == [0, 0, 1, 1]
    adam = Optimizer(model, "adam()", lr=0.01).sharding(3)
    assert adam.sent == (0, 0, 0)
    assert adam.owners == (None,) * 4
    with_params = Optimizer(model, "low_rank([weight_decay(0.1), adam()], rank=2)", lr=0.01)
    assert sum(with_params.sharding(2).sent) > sum(found.sent)
    plane = Optimizer(model, "intrinsic_subspace([heavy_ball(0.9)], dimension=6)", lr=0.01)
    assert plane.sharding(2).state == (6 * 4 + 8,) * 2  # and a count
    with pytest.raises(ArgumentError, match="clip_norm"):
        Optimizer(model, "vector([clip_norm(1.0), adam()])", lr=0.01).sharding(2)
    with pytest.raises(ArgumentError, match="ranks"):
        Optimizer(model, "adam()", lr=0.01).sharding(0)


def test_sums_on_paper() -> None:
    """Of two parameters of float32: a norm of each, or of what one has of parameter and update."""
    model = torch.nn.Linear(5, 7)
    paper = partial(Optimizer, model, lr=0.01)
    clipped = paper("clip_norm(1.0)").sharding(4)
    assert clipped.sums == (8,)
    assert clipped.sent == (12,) * 4  # twice three quarters
    assert paper("lamb()").sharding(4).sums == (16,)
    assert paper("clip_norm(1.0); adam()").sharding(1).sent == (0,)
    checked = paper("clip_norm(1.0)", nonfinite="skip")
    assert checked.sharding(4).sums == (8, 8)
    assert not checked.state


def test_sums_that_depend_on_values() -> None:
    model = torch.nn.Linear(5, 7)
    optimizer = Optimizer(model, "lbfgs()", "strong_wolfe()")
    plan = optimizer.plan_of(optimizer.param_groups)
    found = step_sums(optimizer, plan, by_rows(list(model.parameters()), 2))
    assert [each.known for each in found] == [True, False, False]
    assert str(found[0]) == "for the loss, in each evaluation: 4 bytes (a sum of 4)"
    assert str(found[2]) == (
        "for strong_wolfe(): 8 bytes (a sum of 8), then more, which depends on values"
    )
