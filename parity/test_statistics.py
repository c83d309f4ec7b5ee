"""The averages of KL-SOAP after a gradient, against HeavyBall's."""

from __future__ import annotations

import pytest
import torch
from heavyball import utils

from projcore_lowrank.soap_rotation import whitened

BETA = 0.9


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)], ids=str)
def test_a_gradient_enters_kl_statistics_as_theirs(shape: tuple[int, int]) -> None:
    """Theirs are given averages whose eigenvalues in the bases are those that ours keeps."""
    utils.compile_mode = None
    draw = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, dtype=torch.float64, generator=draw)
    state = {"step": 3}
    averages, bases = [], []
    for k, side in enumerate(shape):
        columns = torch.randn(side, side, dtype=torch.float64, generator=draw)
        bases.append(torch.linalg.qr(columns).Q)
        eigenvalues = 0.1 + torch.rand(side, dtype=torch.float64, generator=draw)
        averages.append(bases[k] @ eigenvalues.diag() @ bases[k].T)
        state |= {f"basis{k}": bases[k], f"average{k}": averages[k]}
        state |= {f"root{k}": eigenvalues.rsqrt(), f"inverse{k}": eigenvalues.reciprocal()}
    theirs = [average.clone()[None] for average in averages]
    utils.update_ggt_kl(grad[None], theirs, [basis[None] for basis in bases], 100, False, BETA, 0.0)
    rows, _ = whitened(grad, state)
    for k, average in enumerate(averages):
        (row,) = rows[k]
        ours = BETA * average + (1 - BETA) * row @ row.T / row.shape[1]
        torch.testing.assert_close(ours, theirs[k][0], rtol=0, atol=1e-14)
