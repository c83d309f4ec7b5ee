"""State is kept by position: one module object may stand in several places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projcore import Module, Objective, Optimizer, ProjectionBase, State
from projcore.modules import LR, Adam, HeavyBall
from projcore.projections import ScalarProjection, VectorProjection


def test_one_object_twice_in_a_chain(make: Any, run: Any) -> None:
    module, rate = HeavyBall(0.5), LR(0.1)
    twice = Optimizer(one := make(), module, VectorProjection([module]), rate)
    apart = Optimizer(other := make(), HeavyBall(0.5), VectorProjection([HeavyBall(0.5)]), LR(0.1))
    for optimizer in (twice, apart):
        run(optimizer, range(4))
    assert all(map(torch.equal, one, other))
    entries = twice.state[one[0]]
    assert entries.keys() == apart.state[other[0]].keys()
    assert len({value.data_ptr() for value in entries.values()}) == len(entries)


def test_its_settings_are_told_apart_by_position(make: Any, run: Any) -> None:
    rate = LR(0.1)
    optimizer = Optimizer(params := make((2,)), rate, ScalarProjection([rate]))
    group = optimizer.param_groups[0]
    assert group["0.lr"] == group["1.modules.0.lr"] == 0.1
    group["1.modules.0.lr"] = 10.0
    before = params[0].detach().clone()
    run(optimizer, range(1))
    torch.testing.assert_close(before - params[0], params[0].grad)


def test_one_object_in_two_optimizers(make: Any, run: Any) -> None:
    chain = [VectorProjection([Adam()]), LR(0.1)]
    first, second = make((3,), (2, 2)), make((3,), (2, 2))
    one, other = Optimizer(first, *chain), Optimizer(second, *chain)
    one.param_groups[0]["lr"] = 0.2
    for step in range(4):  # in turns
        run(one, range(step, step + 1))
        run(other, range(2 * step, 2 * step + 1))
    alone = Optimizer(third := make((3,), (2, 2)), VectorProjection([Adam()]), LR(0.1))
    run(alone, range(0, 8, 2))
    assert all(map(torch.equal, second, third))
    assert other.param_groups[0]["lr"] == 0.1
    assert chain[1].defaults == {"lr": 0.1}


def test_one_recipe_for_other_shapes(make: Any, run: Any) -> None:
    chain = [VectorProjection([Adam()]), LR(0.1)]
    for shapes in [((3,),), ((2, 2), ()), ((0,), (5, 1))]:
        run(Optimizer(make(*shapes), *chain), range(2))


class CountedTogether(Module):
    """Counts steps in memory that belongs to no single tensor."""

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        state.shared["count"] = state.shared.get("count", 0) + 1
        return update


class Learning(ProjectionBase):
    """Leaves tensors as they are, but wants to see only those that have a gradient."""

    scope = "tensor"

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        return None

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return tensors

    def unproject(self, projected_tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return projected_tensors


def test_shared_memory_stays_in_one_place_whichever_tensors_have_a_gradient(make: Any) -> None:
    params = make((2,), (3,))
    optimizer = Optimizer(params, Learning([CountedTogether()]), LR(0.1))
    for idle in (None, 0, 1, None):
        for i, param in enumerate(params):
            param.grad = None if i == idle else torch.ones_like(param)
        optimizer.step()
    assert optimizer.state[params[0]] == {"0/modules/0/shared/count": 4}
    assert optimizer.state[params[1]] == {}
