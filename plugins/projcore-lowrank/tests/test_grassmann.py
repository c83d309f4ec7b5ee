"""Bases that move on the Grassmannian go the way, and as far, as the formulas say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing import assert_close

from projcore import Optimizer
from projcore.choices import GrassWalk, SubTrack
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR
from projcore.projections import Subspace
from projcore_lowrank._seeded import gaussian, uniform_columns
from projcore_lowrank.basis import Basis
from projcore_lowrank.grassmann import moved

DTYPES = [torch.float32, torch.float64, torch.complex128]


def angles(one: Tensor, other: Tensor) -> Tensor:
    """The principal angles of two subspaces, largest first; exact where they are small, too."""
    beside = other - one @ (one.mH @ other)
    return torch.linalg.svdvals(beside).clamp(max=1).arcsin()


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return uniform_columns(gaussian(0, (12, 4), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_principal_angles_are_the_step_times_singular_values(
    dtype: torch.dtype, directions: int
) -> None:
    basis = start(dtype)
    drawn = gaussian(1, (12, 4), dtype)
    tangent = drawn - basis @ (basis.mH @ drawn)
    sizes = torch.linalg.svdvals(tangent)
    step = torch.tensor(1.2 / float(sizes[0]), dtype=sizes.dtype)
    new = moved(basis, tangent, step, directions)
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close(new.mH @ new, torch.eye(4, dtype=dtype), atol=exact, rtol=0)
    expected = torch.cat([step * sizes[:directions], torch.zeros(4 - directions)])
    assert_close(angles(basis, new), expected.to(sizes.dtype), atol=exact, rtol=0)


def test_no_angle_is_above_a_right_one() -> None:
    basis = start()
    tangent = gaussian(1, (12, 4), torch.float64)
    tangent -= basis @ (basis.mT @ tangent)
    new = moved(basis, tangent, torch.tensor(1e3, dtype=torch.float64), 1)
    top = torch.linalg.svd(tangent).U[:, :1]
    assert_close((new.mT @ top).norm(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(angles(basis, new)[:1], torch.tensor([math.pi / 2], dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_tangent_the_basis_stays(dtype: torch.dtype) -> None:
    basis = start(dtype)
    step = torch.ones((), dtype=dtype.to_real())
    assert_close(moved(basis, 0 * basis, step, 4), basis)
    inside = basis @ gaussian(2, (4, 7), dtype)  # a gradient of which nothing is outside
    assert_close(SubTrack(step=1.0, relative=True).columns(inside, 4, basis, 0), basis)
    assert_close(SubTrack().columns(0 * inside, 4, basis, 0), basis)


def test_it_goes_against_the_gradient_of_the_error() -> None:
    g = gaussian(3, (12, 9), torch.float64)
    basis = start().requires_grad_()
    error = (g - basis @ (basis.detach().mT @ g)).square().sum()
    (gradient,) = torch.autograd.grad(error, basis)
    basis = basis.detach()
    step = 1e-7
    new = SubTrack(step=step, directions=4).columns(g, 4, basis, 0)
    assert_close((new - basis) / step, -gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("directions", [1, 3])
def test_following_a_gradient_finds_its_subspace(directions: int) -> None:
    g = uniform_columns(gaussian(4, (12, 4), torch.float64)) @ gaussian(5, (4, 30), torch.float64)
    basis, tracking = start(), SubTrack(step=0.5, relative=True, directions=directions)
    before = (g - basis @ (basis.mT @ g)).norm()
    for seed in range(100):
        basis = tracking.columns(g, 4, basis, seed)
    assert (g - basis @ (basis.mT @ g)).norm() < 0.05 * before


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e30])
def test_a_relative_step_does_not_depend_on_the_size(size: float) -> None:
    g = gaussian(3, (12, 9))
    tracking = SubTrack(step=0.3, relative=True)
    expected = tracking.columns(g, 4, start(torch.float32), 0)
    assert_close(tracking.columns(size * g, 4, start(torch.float32), 0), expected)


def test_an_absolute_step_does() -> None:
    g = gaussian(3, (12, 9), torch.float64)
    turned = [
        angles(start(), SubTrack(step=1e-3).columns(size * g, 4, start(), 0))[0]
        for size in (1.0, 2.0)
    ]
    assert_close(turned[1], 4 * turned[0])


def test_a_walk_takes_steps_of_its_size_in_other_directions() -> None:
    g = gaussian(3, (400, 9), torch.float64)
    basis = uniform_columns(gaussian(0, (400, 4), torch.float64))
    ends = [GrassWalk(step=0.3).columns(g, 4, basis, seed) for seed in range(3)]
    for end in ends:
        assert_close(angles(basis, end), torch.full((4,), 0.3).double(), atol=0.05, rtol=0)
    assert angles(ends[0], ends[1]).min() > 0.3  # two random directions are about orthogonal
    other = GrassWalk(step=0.3, seed=1).columns(g, 4, basis, 0)
    assert angles(ends[0], other).min() > 0.3


@pytest.mark.parametrize("basis", [SubTrack(period=1, step=1.0, relative=True), GrassWalk(1)])
@pytest.mark.parametrize("ranks", [(2, 4), (4, 2)])
def test_a_new_rank_acts_in_the_next_step(basis: Basis, ranks: tuple[int, int]) -> None:
    weight = Parameter(torch.zeros(8, 9))
    optimizer = Optimizer([weight], Subspace([LR(0.1)], rank=ranks[0], basis=basis))
    for rank in ranks:
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = gaussian(6, (8, 9))
        optimizer.step()
        columns = optimizer.state[weight]["0/left"]
        assert_close(columns.mT @ columns, torch.eye(rank), atol=1e-5, rtol=0)


@pytest.mark.parametrize("basis", ["subtrack(period=3)", "grasswalk(period=3)"])
def test_the_basis_moves_at_refreshes_only(basis: str) -> None:
    weight = Parameter(torch.zeros(8, 9))
    optimizer = Optimizer([weight], Subspace(["adam()"], 4, basis, "fira()", "variances()"), lr=0.1)
    seen = []
    for step in range(7):
        weight.grad = gaussian(step, (8, 9))
        optimizer.step()
        seen.append(optimizer.state[weight]["0/left"].clone())
    assert [torch.equal(*pair) for pair in itertools.pairwise(seen)] == [
        step % 3 != 0 for step in range(1, 7)
    ]


def test_bad_arguments_are_refused() -> None:
    for wrong in ({"step": 0.0}, {"directions": 0}, {"source": "none"}):
        with pytest.raises(ArgumentError, match="SubTrack"):
            SubTrack(**wrong)
    with pytest.raises(ArgumentError, match="step=-1"):
        GrassWalk(step=-1.0)
    with pytest.raises(ArgumentTypeError, match="seed=True"):
        GrassWalk(seed=True)
