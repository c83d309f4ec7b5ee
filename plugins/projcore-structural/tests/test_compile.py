"""Steps through these spaces make one graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.testing.parts import Momentum, Scale, UnitNorm
from projcore_structural import (
    BlockPartition,
    Identity,
    Mask,
    MergeDims,
    Permute,
    Reshape,
    SplitFused,
    Stack,
    TangentSphere,
    Tensorize,
    VectorProjection,
)

PROJECTIONS: list[Any] = [
    BlockPartition([UnitNorm()], size=(2, 3)),
    BlockPartition([UnitNorm()], count=3),
    Identity([UnitNorm()]),
    Mask([UnitNorm(), Momentum()], fraction=0.5),
    Mask([UnitNorm()], triangle="lower"),
    MergeDims([UnitNorm()], 6),
    Permute([UnitNorm()], (1, 0)),
    Reshape([UnitNorm()], (None, -1)),
    SplitFused([UnitNorm()], 2, where="ndim==2"),
    Stack([UnitNorm()]),
    TangentSphere([UnitNorm(), Momentum()]),
    Tensorize([UnitNorm(), Momentum()]),
    VectorProjection([UnitNorm()], by="group"),
    VectorProjection([UnitNorm()], by="dtype"),
    VectorProjection([UnitNorm()], by=["ndim==2", "*"]),
]


def train(projection: Any, compile: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 5), (6,), (4, 5))
    params = [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]
    optimizer = Optimizer(groups, projection, Scale(), compile=compile)
    for _ in range(3):
        optimizer.zero_grad()
        sum((p.sin() * p).sum() for p in params).backward()
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
def test_one_graph(projection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiler, backend=backend, fullgraph=True))
    compiled = train(projection, compile=True)
    torch._dynamo.reset()
    assert len(graphs) == 1
    for one, other in zip(compiled, train(projection, compile=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
