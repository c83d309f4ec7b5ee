"""What tells parameters apart is their name, or their place among all: never where they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import projcore
from projcore.modules import HeavyBall
from projcore.projections import BlockPartition, RandomSubspace

Named = list[tuple[str, Tensor]]


def parameters(count: int = 4) -> Named:
    generator = torch.Generator().manual_seed(0)
    return [
        (f"layers.{i}.weight", torch.nn.Parameter(torch.randn(6, 5, generator=generator)))
        for i in range(count)
    ]


def steps(optimizer: projcore.Optimizer, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the parameters after steps in which their maps are renewed."""
    for step in range(5):
        for i, tensor in enumerate(tensors):
            tensor.grad = torch.full_like(tensor.detach(), 0.1 * (step + 1)) * tensor.detach().cos()
            tensor.grad[i % 3] += 1.0
        optimizer.step()
    return [tensor.detach().clone() for tensor in tensors]


def subspace() -> RandomSubspace:
    return RandomSubspace([HeavyBall()], rank=2, period=2)


def optimizer_of(groups: Sequence[Any], **options: Any) -> projcore.Optimizer:
    return projcore.Optimizer(groups, subspace(), "lr(0.1)", **options)


ARRANGED: dict[str, Callable[[Named], Sequence[projcore.Optimizer]]] = {
    "two groups": lambda named: [optimizer_of([{"params": named[1::2]}, {"params": named[::2]}])],
    "another order": lambda named: [optimizer_of(named[::-1])],
    "one optimizer for each": lambda named: [optimizer_of([each]) for each in named],
    "buckets": lambda named: [optimizer_of(named, bucket_bytes=1)],
}


@pytest.mark.parametrize("how", ARRANGED)
def test_named_parameters_move_alike_however_they_are_arranged(how: str) -> None:
    named, others = parameters(), parameters()
    expected = steps(optimizer_of(named), [p for _, p in named])
    optimizers = ARRANGED[how](others)

    class Together:
        def step(self) -> None:
            for each in optimizers:
                each.step()

    found = steps(Together(), [p for _, p in others])  # type: ignore[arg-type]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_parameters_without_names_go_by_their_place() -> None:
    named = parameters()
    optimizer = optimizer_of([p for _, p in named])
    steps(optimizer, [p for _, p in named])
    assert [optimizer.state[p]["0/index"] for _, p in named] == [0, 1, 2, 3]


def test_equal_shapes_get_maps_of_their_own() -> None:
    """Blocks of one matrix, too: with one map for all, a direction would be lost in all at once."""
    (_, parameter), *_ = parameters(1)
    blocks = BlockPartition([subspace()], size=(3, 5))
    optimizer = projcore.Optimizer([("weight", parameter)], blocks, "lr(0.1)")
    steps(optimizer, [parameter])
    keys = [value for name, value in optimizer.state[parameter].items() if name.endswith("index")]
    assert len(keys) == len(set(keys)) == 2
