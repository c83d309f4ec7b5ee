"""Steps that take some parameters at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, Transform
from projcore.engine.commit import make_buckets
from projcore.errors import ArgumentError, StepError
from projcore.modules import LR, Adam, ClipNorm, Normalize
from projcore.projections import BlockPartition, LowRank, VectorProjection

SHAPES = [(8, 6), (5,), (6, 8), (4, 4), (3,)]


def parameters() -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(modules: list[Any], bucket_bytes: int | None, idle: bool = False) -> Optimizer:
    params = parameters()
    optimizer = Optimizer(params, *modules, bucket_bytes=bucket_bytes)
    for step in range(7):
        for i, param in enumerate(params):
            param.grad = torch.sin((i + 1) * param.detach())
            if idle and (step + i) % 3 == 0:
                param.grad = None
        optimizer.step()
    return optimizer


CHAINS = {
    "adam": lambda: [Adam(), LR(0.1)],
    "low rank": lambda: [LowRank([Adam()], rank=2, period=3), LR(0.1)],
    "fira": lambda: [LowRank([Adam()], rank=2, period=2, combine="fira"), LR(0.1)],
    "blocks": lambda: [Normalize(), BlockPartition([Adam()], size=3), LR(0.1)],
    "vector of elementwise": lambda: [VectorProjection([Adam()]), LR(0.1)],
}


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("size", [1, 200, 10_000])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_step_in_buckets_is_bitwise_the_whole_step(chain: str, size: int, idle: bool) -> None:
    whole = train(CHAINS[chain](), None, idle)
    parts = train(CHAINS[chain](), size, idle)
    for one, other in zip(
        whole.param_groups[0]["params"], parts.param_groups[0]["params"], strict=True
    ):
        assert torch.equal(one, other)
        mine, theirs = whole.state[one], parts.state[other]
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])), key


def test_buckets_hold_as_much_as_fits_and_one_at_least() -> None:
    sizes = [4, 8, 12, 40, 4, 4]
    assert make_buckets(sizes, range(6), 12) == [[0, 1], [2], [3], [4, 5]]
    assert make_buckets(sizes, [1, 4, 5], 16) == [[1, 4, 5]]
    assert make_buckets(sizes, range(6), 1) == [[i] for i in range(6)]


class Bomb(Transform):
    """Raises at one of the parameters when it is armed."""

    scope = "tensor"
    armed = False
    shape: tuple[int, ...] = (6, 8)

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        if Bomb.armed and any(tensor.shape == Bomb.shape for tensor in tensors):
            raise ValueError("armed")
        return tensors


def test_an_error_in_the_middle_leaves_whole_buckets_and_says_so(monkeypatch: Any) -> None:
    params = parameters()
    optimizer = Optimizer(params, Adam(), Bomb(), LR(0.1), bucket_bytes=1)

    def give() -> None:
        for param in params:
            param.grad = torch.sin(param.detach())

    give()
    optimizer.step()
    other = copy.deepcopy(optimizer)
    give()
    before = [param.detach().clone() for param in params]
    monkeypatch.setattr(Bomb, "armed", True)
    with pytest.raises(StepError, match=r"2 of 5 buckets of parameters were written .* armed"):
        optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, params, strict=True)]
    assert moved == [True, True, False, False, False]
    # The memory of what was not written may have moved, as in every step; counts tell.
    counts = [int(optimizer.state[param]["0/step"]) for param in params]
    assert counts == [2, 2, 2, 1, 1]
    del other


@pytest.mark.parametrize("after", ["nothing", "a new group", "loading"])
def test_a_step_that_creates_memory_is_whole(after: str, monkeypatch: Any) -> None:
    params = parameters()
    optimizer = Optimizer(params, Adam(), Bomb(), LR(0.1), bucket_bytes=1)

    def give() -> None:
        for param in params:
            param.grad = torch.sin(param.detach())

    give()
    if after != "nothing":
        optimizer.step()
    if after == "a new group":
        params.append(Parameter(torch.ones(2)))
        optimizer.add_param_group({"params": params[-1:]})
    if after == "loading":
        optimizer.load_state_dict(optimizer.state_dict())
    give()
    before = [param.detach().clone() for param in params]
    monkeypatch.setattr(Bomb, "armed", True)
    with pytest.raises(ValueError, match=r"^armed"):
        optimizer.step()
    assert all(map(torch.equal, before, params))


def test_an_error_in_the_first_bucket_is_itself(monkeypatch: Any) -> None:
    params = parameters()
    optimizer = Optimizer(params, Adam(), Bomb(), LR(0.1), bucket_bytes=1)
    for param in params:
        param.grad = torch.sin(param.detach())
    optimizer.step()
    before = [param.detach().clone() for param in params]
    monkeypatch.setattr(Bomb, "armed", True)
    monkeypatch.setattr(Bomb, "shape", SHAPES[0])
    with pytest.raises(ValueError, match=r"^armed"):
        optimizer.step()
    assert all(map(torch.equal, before, params))


def test_it_is_refused_for_modules_that_need_all_parameters() -> None:
    with pytest.raises(ArgumentError, match=r"vector.* needs all parameters at once"):
        Optimizer(parameters(), VectorProjection([ClipNorm(1.0)]), LR(0.1), bucket_bytes=100)
    with pytest.raises(ArgumentError, match="compile=True"):
        Optimizer(parameters(), Adam(), LR(0.1), bucket_bytes=100, compile=True)
    optimizer = Optimizer(parameters(), Adam(), LR(0.1))
    for value in (0, 0.5):
        with pytest.raises(ArgumentError, match=f"bucket_bytes={value}"):
            optimizer.bucket_bytes = value  # type: ignore[assignment]
    assert optimizer.bucket_bytes is None


def test_it_survives_copies_and_is_described() -> None:
    optimizer = copy.deepcopy(train([Adam(), LR(0.1)], 200))
    assert optimizer.bucket_bytes == 200
    assert "in buckets of 200 bytes" in optimizer.describe()
