"""What the processes of these tests train: models that are whole, or sharded in several ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from projcore import Optimizer, recipes

SAMPLES = 48  # divisible by 1, 2, 3 and 4
INPUTS, OUTPUTS = 16, 12
MAP = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(99)).double()

# Each refreshes twice in 20 steps, after the first.
RECIPES: dict[str, dict[str, Any]] = {
    "alice": {"rank": 4, "leading": 2, "period": 8},
    "apollo": {"rank": 4, "period": 8},
    "apollo_mini": {"period": 8},
    "dct_adamw": {"rank": 4},
    "fira": {"rank": 4, "period": 8},
    "flora": {"rank": 4, "period": 8},
    "frugal": {"period": 8},
    "galore_adafactor": {"rank": 4, "period": 8},
    "galore_adamw": {"rank": 4, "period": 8},
    "grassjump": {"rank": 4, "period": 8},
    "golore": {"rank": 4, "period": 8},
    "ldadam": {"rank": 4},
    "muon_adamw": {},
    "soap": {"period": 8},
    "subtrack": {"rank": 4, "period": 8},
    "sumo": {"rank": 4, "period": 8},
}


class Network(torch.nn.Module):
    """Four layers, of which most sides are not divisible by 2 or 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(INPUTS, 26)
        self.second = torch.nn.Linear(26, 17)
        self.third = torch.nn.Linear(17, 17)
        self.last = torch.nn.Linear(17, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.third(self.second(self.first(x).tanh()).tanh()).tanh())


def network(shard: Callable[[torch.nn.Module], object] | None = None) -> torch.nn.Module:
    """Makes a network, sharded by a function."""
    torch.manual_seed(0)
    model = Network().double()
    if shard is not None:
        shard(model)
    return model


def by_layers(mesh: DeviceMesh, **options: Any) -> Callable[[torch.nn.Module], object]:
    """Returns what shards each layer over a mesh, which replicates over its first of two dims."""

    def shard(model: torch.nn.Module) -> None:
        for layer in model.children():
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)

    return shard


def in_tensor_parallel(
    tensor: DeviceMesh, data: DeviceMesh | None = None
) -> Callable[[torch.nn.Module], object]:
    """Returns what shards layers by columns and rows over a mesh, and by rows over another."""

    def shard(model: torch.nn.Module) -> None:
        styles = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(model, tensor, styles)
        for name in ("third", "last"):  # replicated
            parallelize_module(model, tensor, {name: ColwiseParallel(output_layouts=_whole())})
        if data is not None:
            fully_shard(model, mesh=data)

    return shard


def _whole() -> Any:
    return torch.distributed.tensor.Replicate()


def line(size: int) -> DeviceMesh:
    """Returns a mesh of one dimension over all processes."""
    return init_device_mesh("cpu", (size,))


def recipe(name: str, model: torch.nn.Module, **options: Any) -> Optimizer:
    """Builds an optimizer by a recipe, with the options of these tests."""
    made: Optimizer = getattr(recipes, name)(model, lr=1e-2, **RECIPES[name], **options)
    return made


def train(
    model: torch.nn.Module,
    optimizer: Any,
    steps: Iterable[int],
    rank: int = 0,
    size: int = 1,
    noise: float = 0.0,
) -> list[Tensor]:
    """Trains on this process's share of each batch; returns the whole parameters.

    `noise` is that of the gradients, relative to these.
    """
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, INPUTS, generator=generator).double()
        targets = (inputs @ MAP).sin() + torch.randn(SAMPLES, OUTPUTS, generator=generator).double()
        share = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
        dtype = next(iter(model.parameters())).dtype
        optimizer.zero_grad()
        output = model(inputs[share].to(dtype))
        (output - targets[share].to(dtype)).square().mean().backward()
        for parameter in model.parameters() if noise else ():
            assert parameter.grad is not None
            random = torch.randn(parameter.shape, generator=generator).double()
            parameter.grad.mul_(1 + noise * random)
        optimizer.step()
    return [whole(parameter) for parameter in model.parameters()]


def whole(value: Any) -> Any:
    """Returns a tensor put together from its shards; anything else as it is."""
    value = value.detach() if isinstance(value, Tensor) else value
    return value.full_tensor() if isinstance(value, DTensor) else value


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest element of its tensor."""
    pairs = zip(some, others, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
