"""One of the processes of test_ddp.py: trains a model alone and under DistributedDataParallel.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

import torch
from processes import run
from torch.nn.parallel import DistributedDataParallel

from projcore import Optimizer
from projcore.modules import LR, Adam, ClipNorm
from projcore.projections import VectorProjection

STEPS, SAMPLES = 20, 8


def train(rank: int, size: int, bucket_view: bool) -> dict[str, object]:
    """Trains on this process's share of each batch; returns what must not depend on `size`."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Linear(16, 2)
    ).double()
    places = [param.data_ptr() for param in model.parameters()]
    trained = (
        DistributedDataParallel(model, bucket_cap_mb=0.001, gradient_as_bucket_view=bucket_view)
        if size > 1
        else model
    )
    optimizers = [
        Optimizer(model[:2].parameters(), VectorProjection([Adam()]), LR(0.01)),
        Optimizer(model[2:].parameters(), VectorProjection([ClipNorm(0.1), Adam(), LR(0.01)])),
    ]
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 5, dtype=torch.float64, generator=generator)
        share = inputs[rank * SAMPLES // size : (rank + 1) * SAMPLES // size]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss = (trained(share) - share[:, :2].sin()).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert places == [param.data_ptr() for param in model.parameters()]
    return {
        "params": [param.detach() for param in model.parameters()],
        "memory": [optimizer.state_dict() for optimizer in optimizers],
        "losses": losses,
    }


def everything(rank: int, size: int) -> dict[str, object]:
    """Returns the results of all that this file is for."""
    results = {
        "alone": train(0, 1, False),
        "copied": train(rank, size, False),
        "viewed": train(rank, size, True),
    }
    return results


if __name__ == "__main__":
    run(everything)
