"""SARA draws singular vectors with the probabilities that its paper says."""

from __future__ import annotations

import pytest
import torch

from projcore import Optimizer
from projcore.choices import SARA
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR
from projcore.projections import Subspace
from projcore_lowrank._seeded import gaussian, uniform_columns

DRAWS = 1000


def matrix(values: list[float]) -> torch.Tensor:
    """A matrix with these singular values, and the first vectors of the identity on the left."""
    right = uniform_columns(gaussian(0, (5, len(values)), torch.float64))
    return torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


@pytest.mark.parametrize("rank", [1, 2])
def test_frequencies_are_those_of_drawing_without_replacement(rank: int) -> None:
    values = [4.0, 3.0, 2.0, 1.0]
    counts = torch.zeros(4)
    for seed in range(DRAWS):
        columns = SARA().columns(matrix(values), rank, None, seed)
        counts += (columns.abs() > 0.5).any(-1)  # each is a vector of the identity
    weights = torch.tensor(values) / sum(values)
    expected = weights.clone()
    if rank == 2:  # the first, or the second after another one
        others = weights / (1 - weights)
        expected += weights * (others.sum() - others)
    error = (counts / DRAWS - expected).abs()
    assert (error < 4 * (expected * (1 - expected) / DRAWS).sqrt()).all(), (counts, expected)


def test_columns_are_singular_vectors_in_their_order() -> None:
    g = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.linalg.svd(g).U
    for seed in range(5):
        columns = SARA(seed=seed).columns(g, 3, None, 7)
        overlap = (u.mT @ columns).abs()
        torch.testing.assert_close(overlap.amax(0), torch.ones(3, dtype=torch.float64))
        places = overlap.argmax(0)
        assert (places.diff() > 0).all()


def test_directions_of_no_size_come_last() -> None:
    columns = SARA().columns(matrix([2.0, 1.0, 0.0, 0.0]), 2, None, 3)
    torch.testing.assert_close(columns[2:].abs().max(), torch.tensor(0.0, dtype=torch.float64))


def test_refreshes_draw_anew() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 9))
    basis = SARA(period=1)
    optimizer = Optimizer([weight], Subspace([LR(0.0)], rank=2, basis=basis), LR(0.0))
    grad = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    seen = []
    for _ in range(6):
        weight.grad = grad
        optimizer.step()
        seen.append(optimizer.state[weight]["0/left"].clone())
    assert len({tuple(each.flatten().tolist()) for each in seen}) > 3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="seed=-1"):
        SARA(seed=-1)
    with pytest.raises(ArgumentTypeError, match="seed=True"):
        SARA(seed=True)
