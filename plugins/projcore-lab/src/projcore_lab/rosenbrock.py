"""The task ``rosenbrock``: the curved valley in two dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projcore_lab.tasks import Batch, Task, Validation

START = (-1.2, 1.0)  # as in Rosenbrock, 1960


class Rosenbrock(Task):
    """Minimises :math:`(1 - x)^2 + 100 (y - x^2)^2` in float64; nothing in it is random."""

    name = "rosenbrock"
    steps = 1000
    lr = 0.2
    inner = "adam"  # weight decay would pull away from the minimum
    others = ("vector-newton", "vector-descent")
    loss_name = "loss"
    description = "(1 - x)² + 100 (y - x²)² from (-1.2, 1) to its minimum at (1, 1), in float64"

    def new_model(self) -> nn.Module:
        return Point()

    def batch(self, step: int) -> Batch:
        return ()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model()
        return loss

    def validate(self, model: nn.Module) -> Validation:
        with torch.no_grad():
            return Validation(model().item())

    def position(self, model: nn.Module) -> tuple[float, float]:
        x, y = model.parameters()
        return x.item(), y.item()


class Point(nn.Module):
    """Two parameters, `x` and `y`; calling it gives the function's value there."""

    def __init__(self) -> None:
        super().__init__()
        x, y = START
        self.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))
        self.y = nn.Parameter(torch.tensor([y], dtype=torch.float64))

    def forward(self) -> Tensor:
        return rosenbrock(self.x, self.y).sum()


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """Returns the function's values."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2
