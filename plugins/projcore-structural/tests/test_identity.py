"""Nothing changes in the space as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.testing.parts import Momentum, Scale, UnitNorm
from projcore_structural import Identity


@pytest.mark.parametrize("modules", [["adam()"], [Momentum(), UnitNorm()], ["clip_norm(0.1)"]])
def test_modules_inside_do_what_they_do_outside(modules: list[Any]) -> None:
    ends = []
    for chain in ([Identity(modules)], modules):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=generator).requires_grad_() for s in ((4, 3), (5,), ())]
        optimizer = Optimizer(params, *chain, Scale())
        for _ in range(3):
            optimizer.zero_grad()
            sum((p.sin() * p).sum() for p in params).backward()
            optimizer.step()
        ends.append([param.detach() for param in params])
    assert all(map(torch.equal, *ends))
