"""Equal matrices that run as a stack, as on an accelerator, take the steps of each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing import assert_close

from projcore import Optimizer
from projcore.errors import NonFiniteError
from projcore.modules import LR, Adam, WeightDecay
from projcore_lowrank import (
    CoordinateSubspace,
    DCTSelect,
    LDAdamSubspace,
    LowRank,
    RandomSubspace,
    _batches,
)
from projcore_lowrank.subspace import Subspace

SHAPES = [(8, 6), (6, 8), (8, 6), (6, 8), (6, 8), (5,), (2, 4, 7)]
RULES = ["unproject", "residual", "sign", "fira", "apollo", "apollo_mini"]
SUBSPACES: dict[str, Callable[[], Any]] = {
    **{
        f"low_rank-{rule}": lambda rule=rule: LowRank(
            [Adam()], rank=3, period=2, refresh="svd", combine=rule, policy="transport"
        )
        for rule in RULES
    },
    "low_rank-momentum": lambda: LowRank([Adam()], rank=3, period=2, source="momentum"),
    "low_rank-both": lambda: LowRank([Adam()], rank=3, period=2, side="full", combine="sign"),
    "low_rank-errors": lambda: LowRank(
        [Adam()], rank=3, period=2, combine="residual", error_feedback=True
    ),
    "low_rank-fira-errors": lambda: LowRank(
        [Adam()], rank=3, period=2, combine="fira", error_feedback=True
    ),
    "low_rank-dtype": lambda: LowRank([Adam()], rank=3, combine="fira", compute_dtype="float32"),
    **{
        f"random-{kind}": lambda kind=kind: RandomSubspace(
            [Adam()], rank=3, period=2, kind=kind, policy="transport"
        )
        for kind in ("gaussian", "rademacher", "orthonormal", "srht")
    },
    **{
        f"{basis.partition('(')[0]}-{rule}": lambda basis=basis, rule=rule: Subspace(
            [Adam()], 3, basis, f"{rule}()", "variances()"
        )
        for basis, rule in (
            ("subtrack(period=2, step=1.0, relative=True)", "fira"),
            ("grasswalk(period=2)", "fira"),
            ("random_basis(period=2, kind='orthonormal')", "fira"),
            ("switching(period=2, leading=1, beta=0.9)", "compensation"),
            ("switching(period=2, leading=1)", "unproject"),
        )
    },
    "random-chain": lambda: RandomSubspace([Adam()], rank=3, chain="apollo", combine="apollo"),
    "random-stored": lambda: RandomSubspace([Adam()], rank=3, period=2, store=True),
    "random-both": lambda: RandomSubspace([Adam()], rank=3, side="full"),
    **{
        f"coordinates-{select}": lambda select=select: CoordinateSubspace(
            [Adam()], rank=3, period=2, select=select, combine="sign", policy="transport"
        )
        for select in ("top", "random", "norm", "cyclic")
    },
    "coordinates-entries": lambda: CoordinateSubspace(
        [Adam()], rank=0.5, axis="entries", select="random", combine="residual"
    ),
    "dct": lambda: DCTSelect([Adam()], rank=3, error_feedback=True, policy="transport"),
    "dct-two": lambda: DCTSelect([Adam()], rank=3, period=2, norm=2, side="full"),
    "ldadam": lambda: LDAdamSubspace([Adam()], rank=3),
    "ldadam-left": lambda: LDAdamSubspace([Adam()], rank=3, side="left", error_feedback=False),
}


def run(make: Callable[[], Any], steps: int = 5) -> tuple[list[Parameter], Optimizer]:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [Parameter(draw(shape)) for shape in SHAPES]
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.02, "scale": 0.5}]
    optimizer = Optimizer(groups, make(), WeightDecay(0.1), LR(0.01))
    for _ in range(steps):
        for param in params:
            param.grad = draw(tuple(param.shape))
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", SUBSPACES)
@pytest.mark.parametrize("workspace", [1 << 30, 2 * 48 * 8])
def test_a_stack_takes_the_steps_of_its_matrices(
    name: str, workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, first = run(SUBSPACES[name])
    monkeypatch.setattr(_batches, "is_alone", lambda tensor: False)
    monkeypatch.setattr(_batches, "WORKSPACE", workspace)
    together, second = run(SUBSPACES[name])
    # Products in float32 round otherwise in a stack.
    atol = 1e-6 if name == "low_rank-dtype" else 1e-11
    assert_close(together, alone, atol=atol, rtol=0)
    for one, other in zip(alone, together, strict=True):
        before, after = first.state[one], second.state[other]
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert_close(after[key], value, atol=atol * 100, rtol=0, msg=key)


@pytest.mark.parametrize("name", SUBSPACES)
@pytest.mark.parametrize("alone", [False, True])
def test_what_is_written_is_what_combine_makes(
    name: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "is_alone", lambda tensor: alone)
    written, _ = run(SUBSPACES[name])
    monkeypatch.setattr(Subspace, "writer", lambda self, targets: "for the comparison")
    combined, _ = run(SUBSPACES[name])
    assert_close(written, combined, atol=1e-6 if name == "low_rank-dtype" else 1e-11, rtol=0)


@pytest.mark.parametrize("name", SUBSPACES)
def test_what_is_kept_has_memory_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that hold each tensor once need that."""
    monkeypatch.setattr(_batches, "is_alone", lambda tensor: False)
    _, optimizer = run(SUBSPACES[name])
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel()
    ]
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(places)) == len(places)


def test_one_wait_tells_which_matrix_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "is_alone", lambda tensor: False)
    params = [Parameter(torch.ones(4, 3)) for _ in range(3)]
    optimizer = Optimizer(params, LowRank([Adam()], rank=2), LR(0.1))
    for param in params:
        param.grad = torch.ones(4, 3)
    params[1].grad = torch.full((4, 3), torch.nan)
    with pytest.raises(NonFiniteError, match=r"shape \(4, 3\)"):
        optimizer.step()
    skipping = Optimizer(params, LowRank([Adam()], rank=2, nonfinite="skip"), LR(0.1))
    skipping.step()
    assert [skipping.state[param]["0/pending"] for param in params] == [0, 1, 0]


@pytest.mark.parametrize("combine", ["unproject", "residual", "sign"])
def test_errors_are_left_alone_where_an_update_is_not_finite(combine: str) -> None:
    """An error that took Inf or NaN would never be finite again."""
    param = Parameter(torch.ones(4, 3))
    modules = LowRank([Adam()], rank=2, period=1, combine=combine, error_feedback=True)
    optimizer = Optimizer([param], modules, LR(0.1))
    param.grad = torch.arange(12.0).view(4, 3)
    optimizer.step()
    kept = optimizer.state[param]["0/error"].clone()
    param.grad = torch.full((4, 3), torch.nan)
    with pytest.raises(NonFiniteError, match=r"shape \(4, 3\)"):
        optimizer.step()
    assert_close(optimizer.state[param]["0/error"], kept, atol=0, rtol=0)
    param.grad = torch.ones(4, 3)
    optimizer.step()
    assert param.isfinite().all()
