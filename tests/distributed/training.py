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
INPUTS = OUTPUTS = 18
MAP = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(99)).double()

# All there are. Each refreshes twice in 20 steps, after the first.
RECIPES: dict[str, dict[str, Any]] = {
    "adam_h": {},
    "alice": {"rank": 4, "leading": 2, "period": 8},
    "apollo": {"rank": 4, "period": 8},
    "apollo_mini": {"period": 8},
    "dct_adamw": {"rank": 4},
    "dion2_adamw": {},
    "fira": {"rank": 4, "period": 8},
    "flora": {"rank": 4, "period": 8},
    "foam_adamw": {},
    "frugal": {"period": 8},
    "galore_adafactor": {"rank": 4, "period": 8},
    "galore_adamw": {"rank": 4, "period": 8},
    "golore": {"rank": 4, "period": 8},
    "grassjump": {"rank": 4, "period": 8},
    "grasswalk": {"rank": 4, "period": 8},
    "intrinsic_dimension": {"dimension": 20},
    "kl_soap": {"period": 8},
    "ldadam": {"rank": 4},
    "muon_adamw": {},
    "muon_h": {},
    "muon_heads_adamw": {"heads": {"first.weight": 2}},
    "muon_plus_adamw": {},
    "normuon_adamw": {},
    "racs_adamw": {},
    "scale_adamw": {},
    "soap": {"period": 8},
    "soap_h": {"period": 8},
    "soap_muon": {"period": 8},
    "subtrack": {"rank": 4, "period": 8},
    "sumo": {"rank": 4, "period": 8},
}

# The first gradient of a matrix that is not square has equal eigenvalues, of zero, in whose space
# the bases of SOAP turn by any rounding. So these are tried on square matrices.
ON_SQUARES = {"kl_soap", "soap", "soap_h", "soap_muon"}


class Network(torch.nn.Module):
    """Four layers; tensor parallelism needs the first of the hidden sides to be even."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        sides = [INPUTS, *hidden, OUTPUTS]
        self.first, self.second, self.third, self.last = map(torch.nn.Linear, sides, sides[1:])

    def forward(self, x: Tensor) -> Any:
        return self.last(self.third(self.second(self.first(x).tanh()).tanh()).tanh())


def network(
    shard: Callable[[torch.nn.Module], object] | None = None, name: str = ""
) -> torch.nn.Module:
    """Makes a network, sharded by a function, that a recipe can be tried on."""
    torch.manual_seed(0)
    model = Network(*(18, 18, 18) if name in ON_SQUARES else (26, 17, 17)).double()
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
        inputs, targets = batch(step, rank, size)
        optimizer.zero_grad()
        loss_of(model(inputs), targets).backward()
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters() if noise else ():
            assert parameter.grad is not None
            random = torch.randn(parameter.shape, generator=generator).double()
            parameter.grad.mul_(1 + noise * random)
        optimizer.step()
    return [whole(parameter) for parameter in model.parameters()]


def train_in_shares(
    model: torch.nn.Module, optimizer: Any, steps: Iterable[int], size: int, dtype: torch.dtype
) -> list[Tensor]:
    """Trains in one process as several do, each of which computes its gradients in some dtype."""
    for step in steps:
        optimizer.zero_grad()
        for rank in range(size):
            inputs, targets = batch(step, rank, size)
            low = {
                name: parameter.detach().to(dtype).requires_grad_()
                for name, parameter in model.named_parameters()
            }
            output = torch.func.functional_call(model, low, (inputs.to(dtype),))
            grads = torch.autograd.grad(loss_of(output, targets), list(low.values()))
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                mine = grad.to(parameter.dtype) / size
                parameter.grad = mine if parameter.grad is None else parameter.grad + mine
        optimizer.step()
    return [whole(parameter) for parameter in model.parameters()]


def batch(step: int, rank: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns the inputs and targets of a process in a step."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(SAMPLES, INPUTS, generator=generator).double()
    targets = (inputs @ MAP).sin() + torch.randn(SAMPLES, OUTPUTS, generator=generator).double()
    share = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
    return inputs[share], targets[share]


def loss_of(output: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean of squared differences."""
    return (output - targets).square().mean()


def whole(value: Any) -> Any:
    """Returns a tensor put together from its shards; anything else as it is."""
    value = value.detach() if isinstance(value, Tensor) else value
    return value.full_tensor() if isinstance(value, DTensor) else value


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest element of its tensor."""
    pairs = zip(some, others, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
