"""What an optimizer says of itself: the expression that builds it, and a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import projcore
from projcore import Optimizer, ProjectionBase, Transform
from projcore.modules import (
    LBFGS,
    LR,
    Adam,
    Backtracking,
    ClipNorm,
    HeavyBall,
    Normalize,
    StrongWolfe,
)
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam": lambda: [Adam(), LR(0.1)],
    "vector": lambda: [VectorProjection([ClipNorm(1.0), Adam((0.8, 0.95)), LR(1e-3)])],
    "nested": lambda: [
        VectorProjection([To([ScalarProjection([ClipNorm(1.0), HeavyBall(0.9)])], "float32")]),
        ViewAsReal([LR(0.1)]),
    ],
    "master": lambda: [To([Adam(), LR(0.1)], torch.float32, master=True)],
    "search": lambda: [VectorProjection([LBFGS(), Backtracking()])],
    "wolfe": lambda: [To([VectorProjection([LBFGS(history_size=5), StrongWolfe()])], "float32")],
    "names": lambda: [
        "clip_norm(1.0)",
        "vector([adam(betas=(0.5, 0.9)), clip_norm(0.1)])",
        "lr(1)",
    ],
}


def take(optimizer: Optimizer, steps: int = 1) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def closure(backward: bool = True) -> Tensor:
        loss = torch.stack([(p - 1).square().sum() for p in params]).sum()
        if backward:
            for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
                param.grad = grad
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_expression_builds_it(chain: str, make: Any, same: Any) -> None:
    first = Optimizer(one := make(), *CHAINS[chain]())
    second = Optimizer(other := make(), projcore.build(str(first)))
    third = Optimizer(third_params := make(), str(first))
    assert str(first) == str(second) == str(third)
    for optimizer in (first, second, third):
        take(optimizer, 3)
    assert all(map(torch.equal, one, other))
    assert all(map(torch.equal, one, third_params))
    assert same(first.state_dict(), second.state_dict())


def test_the_expression_is_short(make: Any) -> None:
    optimizer = Optimizer(make(), *CHAINS["vector"]())
    assert "vector([clip_norm(1.0), adam(betas=(0.8, 0.95)), lr(0.001)])" in str(optimizer)
    assert repr(optimizer) == f"Optimizer(<4 parameters>, {str(optimizer)!r})"


def state_bytes(optimizer: Optimizer, param: Tensor) -> int:
    """The bytes of the storages behind a parameter's memory; counts may share one."""
    tensors = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in tensors
        if value.ndim
    }
    return sum(storages.values()) + sum(value.nbytes for value in tensors if not value.ndim)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_table_estimates_the_memory(chain: str, make: Any) -> None:
    params = make(dtype=torch.bfloat16 if chain == "master" else torch.float64)
    names = ["first", "second", "third", "fourth"]
    optimizer = Optimizer(list(zip(names, params, strict=True)), *CHAINS[chain]())
    before = optimizer.describe()
    assert not optimizer.state
    take(optimizer)
    lines = optimizer.describe().splitlines()
    for name, param in zip(names, params, strict=True):
        (line,) = [line for line in lines if line.startswith(name)]
        assert f" {state_bytes(optimizer, param):,}" in line
        assert " x ".join(map(str, param.shape)) in line
        assert str(param.dtype).removeprefix("torch.") in line
    assert before.splitlines() == lines


def test_the_plan_is_printed(make: Any) -> None:
    params = make((3, 2), (4,))
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:]}]
    text = Optimizer(groups, VectorProjection([Normalize(), Adam()]), LR(1.0)).describe()
    table = [line.split() for line in text.splitlines()]
    assert ["0", "3", "x", "2", "float64", "0", "10", "104"] in table  # two moments, and a count
    assert ["1", "4", "float64", "1", "10", "72"] in table
    assert ["0", "vector([...])", "10"] in table
    assert ["0/modules/0", "normalize()", "10"] in table
    assert ["0/modules/1", "adam()", "3", "x", "2,", "4"] in table
    assert ["1", "lr(1.0)", "3", "x", "2,", "4"] in table


def nodes_of(*arguments: Any, **options: Any) -> list[str]:
    return Optimizer(*arguments, **options).describe().split("\n\n")[2].splitlines()


def test_the_nodes_of_a_step_are_printed(make: Any) -> None:
    kernel = "write adam by torch's fused Adam"
    assert nodes_of(make(), ClipNorm(1.0), Adam(), LR(1.0)) == [
        "Steps run eager:",
        "  run clip_norm",
        f"  {kernel}; folded: lr",
    ]
    assert nodes_of(make(), Adam(), LR(1.0), compile=True) == [
        "Steps run compiled:",
        "  compiled",
        "    run adam",
        "    run lr",
        "    write the update",
    ]


def test_the_nodes_say_what_runs_in_blocks(make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("projcore.engine.passes.split.BLOCK", 6)
    lines = nodes_of(make(), ClipNorm(1.0), Adam(), LR(1.0), "polyak_averaging(0.9)")
    assert lines == [
        "Steps run eager:",
        "  factor of clip_norm",
        "  in 3 blocks, of up to 6 elements or one tensor",
        "    write adam by torch's fused Adam; folded: lr",
        "  observe polyak_averaging",
    ]


def test_the_nodes_of_many_tensors_are_few(make: Any) -> None:
    params = make(*[(2, 2)] * 50, *[(3,)] * 50)
    groups = [{"params": [param], "lr": 1 / (1 + i)} for i, param in enumerate(params)]
    text = ["Steps run eager:", "  write adam in 100 calls by torch's fused Adam; folded: lr"]
    assert nodes_of(groups, Adam(), LR(1.0)) == text
    route = "route({'ndim==2': adam(), '*': sign()})"
    assert nodes_of(params, route, LR(1.0)) == [
        "Steps run eager:",
        "  run sign on 50 of 100 tensors",
        "  write adam on 50 of 100 tensors by torch's fused Adam; folded: lr",
        "  write the update on 50 of 100 tensors; folded: lr",
    ]


def test_shapes_that_depend_on_values_are_known_after_the_first_step(make: Any) -> None:
    assert "    known after the first step" in nodes_of(make(), AsSummed(["adam()"]), LR(1.0))


class AsSummed(ProjectionBase):
    """Keeps as many of a tensor's elements as their sum says."""

    scope = "tensor"

    def project(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return [tensor.flatten()[: int(tensor.sum())] for tensor in tensors]

    def unproject(self, projected_tensors: Any, params: list[Tensor], *_: Any) -> list[Tensor]:
        raise NotImplementedError


def test_many_tensors_are_counted(make: Any) -> None:
    text = Optimizer(make(*[(2, 2)] * 50, *[()] * 3, (0,)), Adam()).describe()
    assert "50 of 2 x 2, 3 of scalar, 0" in text


def test_describing_changes_nothing(make: Any, run: Any, snapshot: Any, same: Any) -> None:
    optimizer = Optimizer(make(), *CHAINS["vector"]())
    run(optimizer, range(2))
    before = snapshot(optimizer)
    state = torch.random.get_rng_state()
    optimizer.describe()
    str(optimizer)
    repr(optimizer)
    assert same(before, snapshot(optimizer))
    assert torch.equal(state, torch.random.get_rng_state())


class Odd(Transform):
    """Has an argument that no spec can hold."""

    scope = "element"

    def __init__(self, function: Any) -> None:
        self.function = function
        super().__init__()

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [self.function(tensor) for tensor in tensors]


def test_what_no_spec_can_hold_works_and_shows_all_the_same(make: Any, run: Any) -> None:
    optimizer = Optimizer(make(), VectorProjection([Odd(torch.sign)]), LR(0.1))
    run(optimizer, range(1))
    assert "Odd" in repr(optimizer.module)
    assert "Odd" in repr(optimizer)
    assert "Odd" in optimizer.describe()
