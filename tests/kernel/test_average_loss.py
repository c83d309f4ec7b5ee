"""The mean of the loss over processes: when it may be asked for."""

from __future__ import annotations

import copy

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ArgumentError


@pytest.mark.parametrize("value", [True, False])
def test_refused_where_nothing_reads_the_loss(value: bool) -> None:
    with pytest.raises(ArgumentError, match=f"average_loss={value}.* no module of .*lr.* reads it"):
        Optimizer([torch.nn.Parameter(torch.ones(2))], "lr(0.1)", average_loss=value)


def test_one_process_is_its_own_mean_and_copies_keep_it() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = Optimizer([weight], "backtracking()", average_loss=True)

    def closure(backward: bool = True) -> torch.Tensor:
        loss = (weight**2).sum()
        if backward:
            optimizer.zero_grad()
            loss.backward()
        return loss

    assert optimizer.step(closure) == 9.0
    assert weight.item() == 0.0  # half of the step, which is tried second
    assert copy.deepcopy(optimizer).average_loss is True
