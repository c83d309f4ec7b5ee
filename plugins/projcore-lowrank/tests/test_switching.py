"""Alice's choices: what is kept at a refresh, what is followed between, what is compensated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing import assert_close

from projcore import Optimizer
from projcore.choices import Compensation, Switching
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR
from projcore.projections import Subspace
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank._seeded import gaussian, uniform_columns
from projcore_lowrank.switching import eigenvectors


def state_of(basis: Tensor, **more: Any) -> dict[str, Any]:
    return {"left": basis, "pending": 0, "step": 3, **more}


def learnt(switching: Switching, g: Tensor, state: dict[str, Any], rank: int) -> dict[str, Any]:
    return switching.learn("left", rank, g, state, {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("leading", [1, 3, 9, 0.5])
def test_leading_vectors_stay_and_the_others_are_in_the_complement(
    dtype: torch.dtype, leading: float
) -> None:
    left, right = (
        uniform_columns(gaussian(0, (12, 6), dtype)),
        uniform_columns(gaussian(1, (15, 6), dtype)),
    )
    g = left @ torch.diag(torch.tensor([32.0, 16, 8, 4, 2, 1]).to(dtype)) @ right.mH
    kept = {1: 1, 3: 3, 9: 6, 0.5: 3}[leading]
    seen = []
    for seed in range(3):
        switching = Switching(leading=leading, seed=seed)
        for state in (state_of(left), state_of(left, pending=1)):  # the first is exact, too
            columns = learnt(switching, g, state, 6)["left"]
            assert_close(columns.mH @ columns, torch.eye(6, dtype=dtype))
            overlap = (left[:, :kept].mH @ columns[:, :kept]).abs()
            assert_close(overlap, torch.eye(kept, dtype=dtype.to_real()))
        seen.append(columns[:, kept:])
    if kept < 6:
        assert (seen[0].mH @ seen[1]).norm() < 0.999 * (6 - kept) ** 0.5


def test_the_others_are_uniform_in_the_complement() -> None:
    left = uniform_columns(gaussian(0, (4, 2), torch.float64))
    g = left @ torch.diag(torch.tensor([3.0, 1.0]).double())
    total = torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(2000):
        drawn = learnt(Switching(leading=1, seed=seed), g, state_of(left), 2)["left"][:, 1:]
        total += drawn @ drawn.mT / 2000
    complement = torch.eye(4, dtype=torch.float64) - left[:, :1] @ left[:, :1].mT
    assert_close(total, complement / 3, atol=0.03, rtol=0)


@pytest.mark.parametrize("tracks", [False, True])
def test_it_is_a_step_of_subspace_iteration_with_the_mean_formed(tracks: bool) -> None:
    g, basis = (
        gaussian(2, (9, 14), torch.float64),
        uniform_columns(gaussian(3, (9, 4), torch.float64)),
    )
    root = gaussian(4, (4, 4), torch.float64)
    tracked, beta = (root @ root.mT, 0.7) if tracks else (None, 0.0)
    mean = (1 - beta) * g @ g.mT
    if tracked is not None:
        mean = mean + beta * basis @ tracked @ basis.mT
    q = torch.linalg.qr(mean @ basis).Q
    vectors = torch.linalg.eigh(q.mT @ mean @ q).eigenvectors
    expected = (q @ vectors).flip(-1)
    found = eigenvectors(g, basis, tracked, beta)
    assert_close((expected.mT @ found).abs(), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_inside_is_followed_and_carried_over(side: str) -> None:
    weight = Parameter(torch.zeros(6, 9, dtype=torch.float64))
    basis = Switching(period=3, leading=1, beta=0.9)
    optimizer = Optimizer([weight], Subspace([LR(0.1)], 4, basis, side=side))
    expected, before = torch.zeros(4, 4, dtype=torch.float64), None
    for step in range(7):
        grad = weight.grad = gaussian(step, (6, 9), torch.float64)
        optimizer.step()
        state = optimizer.state[weight]
        columns = state[f"0/{side}"].clone()
        inside = columns.mT @ (grad if side == "left" else grad.mT)
        if before is not None:
            change = columns.mT @ before
            expected = change @ expected @ change.mT
        expected = 0.9 * expected + 0.1 * inside @ inside.mT
        assert_close(state["0/tracked"], expected)
        before = columns


def test_without_a_beta_there_is_no_memory_of_products() -> None:
    weight = Parameter(torch.zeros(6, 9))
    optimizer = Optimizer([weight], Subspace([LR(0.1)], 4, Switching()))
    weight.grad = gaussian(0, (6, 9))
    optimizer.step()
    assert "0/tracked" not in optimizer.state[weight]
    assert optimizer.memory().state == 4 * 6 * 4


def test_the_mean_is_in_float32_where_the_parameter_is_not() -> None:
    weight = Parameter(torch.zeros(6, 9, dtype=torch.bfloat16))
    subspace = Subspace(["adam()"], 4, Switching(beta=0.999), Compensation())
    optimizer = Optimizer([weight], subspace, lr=0.1)
    for step in range(3):
        weight.grad = gaussian(step, (6, 9)).bfloat16()
        optimizer.step()
    state = optimizer.state[weight]
    assert state["0/tracked"].dtype == state["0/energies"].dtype == torch.float32
    assert weight.isfinite().all()


@pytest.mark.parametrize("ranks", [(2, 4), (4, 2)])
def test_a_new_rank_acts_in_the_next_step(ranks: tuple[int, int]) -> None:
    weight = Parameter(torch.zeros(8, 9))
    basis = Switching(period=100, leading=1, beta=0.5)
    optimizer = Optimizer([weight], Subspace([LR(0.1)], ranks[0], basis))
    for rank in ranks:
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = gaussian(6, (8, 9))
        optimizer.step()
        state = optimizer.state[weight]
        assert_close(state["0/left"].mT @ state["0/left"], torch.eye(rank), atol=1e-5, rtol=0)
        assert state["0/tracked"].shape == (rank, rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_are_not_compensated(dtype: torch.dtype) -> None:
    """A gradient of which nothing is outside leaves a residual of rounding errors."""
    weight = Parameter(torch.zeros(8, 9, dtype=dtype))
    subspace = Subspace([LR(0.1)], 2, "svd()", Compensation(limit=None))
    optimizer = Optimizer([weight], subspace)
    for step in range(5):
        grad = uniform_columns(gaussian(0, (8, 2), dtype)) @ gaussian(step, (2, 9), dtype)
        weight.grad = grad
        before = weight.detach().clone()
        optimizer.step()
        assert_close(weight.detach(), before - 0.1 * grad, atol=2e-3, rtol=0)


def test_residuals_of_all_sizes_are_of_one_size_then() -> None:
    weight = Parameter(torch.zeros(8, 9, dtype=torch.float64))
    subspace = Subspace([LR(0.0)], 2, "svd()", Compensation(residual_scale=1.0, limit=None))
    optimizer = Optimizer([weight], subspace)
    sizes = 10.0 ** torch.arange(-4, 5).double()
    weight.grad = gaussian(0, (8, 9), torch.float64) * sizes
    optimizer.step()
    columns = weight.detach().norm(dim=0)
    expected = torch.full((9,), (6 / 0.1) ** 0.5, dtype=torch.float64)
    assert_close(columns, expected, rtol=1e-3, atol=0)  # 1e-8 stands beside 1e-4


def test_bad_arguments_are_refused() -> None:
    for wrong in ({"leading": 0}, {"leading": 1.5}, {"beta": 1.0}, {"seed": -1}):
        with pytest.raises(ArgumentError, match="Switching"):
            Switching(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="seed=True"):
        Switching(seed=True)
    with pytest.raises(ArgumentError, match="beta=1"):
        Compensation(beta=1.0)
    with pytest.raises(ArgumentError, match="residual_scale=-1"):
        Optimizer(
            [Parameter(torch.ones(4, 5))], Subspace(["adam()"], 2, combine=Compensation(1.0, -1.0))
        )
    with pytest.raises(ArgumentError, match="rows or columns only"):
        Subspace(["adam()"], 2, Switching(), side="full")


# The mean is followed when the update is made, so the map is not learnt in refresh alone.
TRACKING = Subject(
    Subspace,
    "Subspace that tracks",
    frozenset({"data_dependent", "stochastic"}),
    {
        "rank": 2,
        "basis": "switching(period=2, stagger=False, leading=1, beta=0.9)",
        "combine": "compensation()",
    },
)


@parametrize_with_checks(TRACKING)
def test_laws_that_do_not_ask_for_a_linear_map(check):
    check()
