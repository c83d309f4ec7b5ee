"""One of the processes of test_sharded.py: trains models whole, and sharded by `fully_shard`.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from processes import run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from projcore import Optimizer, first_nonfinite
from projcore.errors import ArgumentError, NonFiniteError
from projcore.modules import (
    EMA,
    LAMB,
    LARS,
    LR,
    Adam,
    Adan,
    Centralize,
    ClipNorm,
    HeavyBall,
    Lion,
    Normalize,
    RMSprop,
    Route,
    TrustRatio,
    WeightDecay,
)
from projcore.projections import LowRank, To, VectorProjection

STEPS, SAMPLES = 6, 8
Modules = Callable[[], list[Any]]
RIGHT: dict[str, Modules] = {
    "gradients": lambda: [LR(0.1)],
    "Adam": lambda: [Adam(), WeightDecay(0.1), LR(0.01)],
    "HeavyBall": lambda: [WeightDecay(0.1), HeavyBall(0.9, nesterov=True), LR(0.1)],
    "others": lambda: [RMSprop(), EMA(0.9), Lion(), LR(0.01)],
    "ClipNorm": lambda: [ClipNorm(0.1), Adam(), LR(0.01)],
    "per tensor": lambda: [ClipNorm(0.1, per_tensor=True), Adam(), LR(0.01)],
    "Normalize": lambda: [Centralize(), Normalize(), LR(0.01)],
    "LAMB": lambda: [LAMB(), LR(0.01)],
    "LARS": lambda: [LARS(), LR(0.01)],
    "TrustRatio": lambda: [Adan(), TrustRatio(), LR(0.01)],
    "Route": lambda: [Route({"ndim==2": [Adam()], "*": [HeavyBall(0.9)]}), LR(0.01)],
    "To": lambda: [To([HeavyBall(0.9)], "float64"), LR(0.01)],
    "plane": lambda: ["intrinsic_subspace([adam()], dimension=40)", LR(0.01)],
    "dense plane": lambda: [
        "intrinsic_subspace([weight_decay(0.1), adam()], dimension=9, kind='dense')",
        LR(0.01),
    ],
    "srht plane": lambda: [
        "intrinsic_subspace([weight_decay(0.1), heavy_ball(0.9)], dimension=40, kind='srht')",
        LR(0.1),
    ],
    "a layout": lambda: [VectorProjection([Adam(), LR(0.01)])],
}
REFUSED: dict[str, Modules] = {
    "in a route": lambda: [Route({"*": [LowRank([ClipNorm(1.0)], rank=2)]}), LR(0.01)],
    "a vector": lambda: [VectorProjection([ClipNorm(0.1)])],
}


def build(modules: Modules, size: int) -> tuple[torch.nn.Module, Optimizer]:
    """Makes a model, sharded if there are several processes, and its optimizer."""
    torch.manual_seed(0)
    # The sides 7 and 3 are not divisible by 2; of a single number one process has nothing.
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 7),
        torch.nn.Linear(7, 3),
        torch.nn.Linear(3, 1),
    ).double()
    if size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model, Optimizer(model.parameters(), *modules())


def train(
    model: torch.nn.Module, optimizer: Optimizer, steps: range, rank: int, size: int
) -> dict[str, Any]:
    """Trains on this process's share of each batch; returns what must not depend on `size`."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 5, dtype=torch.float64, generator=generator)
        share = inputs[rank * SAMPLES // size : (rank + 1) * SAMPLES // size]
        optimizer.zero_grad()
        (model(share) - share[:, :1].sin()).square().mean().backward()
        optimizer.step()
    memory = optimizer.state_dict()["state"]
    return {
        "params": [whole(param) for param in model.parameters()],
        "memory": {i: {k: whole(v) for k, v in each.items()} for i, each in memory.items()},
    }


def resume(modules: Modules, rank: int, size: int) -> dict[str, Any]:
    """Trains, and goes on with another model and optimizer from what torch saves of these."""
    model, optimizer = build(modules, size)
    train(model, optimizer, range(STEPS // 2), rank, size)
    saved = get_state_dict(model, optimizer)
    other, its = build(modules, size)
    set_state_dict(other, its, model_state_dict=saved[0], optim_state_dict=saved[1])
    return train(other, its, range(STEPS // 2, STEPS), rank, size)


def in_backward(modules: Modules, rank: int, size: int) -> dict[str, Any]:
    """Trains with steps in the backward pass, which leave no gradient."""
    model, optimizer = build(modules, size)
    optimizer.in_backward = True
    result = train(model, optimizer, range(STEPS), rank, size)
    result["grads"] = sum(param.grad is not None for param in model.parameters())
    return result


def beside_plain(size: int) -> list[Any]:
    """Steps a sharded and a whole parameter by one optimizer; returns both as they are then."""
    model = torch.nn.Linear(4, 4, bias=False).double()
    torch.nn.init.ones_(model.weight)
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    plain = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = Optimizer(
        [model.weight, plain], ClipNorm(0.1), Adam(), "clip_value(1.0)", WeightDecay(0.1), LR(0.1)
    )
    for _ in range(3):
        for parameter in (model.weight, plain):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return [whole(model.weight), plain.detach()]


def planes(rank: int, size: int) -> dict[str, Any]:
    """Steps on a plane of parameters that lie in several ways, beside one that is whole.

    Also returns how many collectives a step takes.
    """
    mesh = init_device_mesh("cpu", (1, size))
    lying = [[Shard(1), Shard(0)], [Replicate(), Shard(1)], [Shard(0), Replicate()], None]
    results: dict[str, Any] = {}
    for kind in ("fastfood", "dense", "srht"):
        for how in ("alone", "sharded"):
            generator = torch.Generator().manual_seed(0)
            params = []
            for placements in lying:
                values, grad = torch.randn(2, 5, 7, generator=generator).double()
                if how == "sharded" and placements is not None:
                    values, grad = (
                        distribute_tensor(each, mesh, placements, src_data_rank=None)
                        for each in (values, grad)
                    )
                params.append(torch.nn.Parameter(values))
                params[-1].grad = grad
            space = f"intrinsic_subspace([weight_decay(0.1), adam()], 20, kind='{kind}')"
            optimizer = Optimizer(params, space, LR(0.1))
            optimizer.step()
            with CommDebugMode() as counted:
                optimizer.step()
            results[f"{kind} {how}"] = [whole(param) for param in params]
            results[f"{kind} {how} count"] = counted.get_total_counts()
    return results


def whole(value: Any) -> Any:
    """Returns a tensor put together from its shards; anything else as it is."""
    value = value.detach() if isinstance(value, Tensor) else value
    return value.full_tensor() if isinstance(value, DTensor) else value


def refusal(modules: Modules, size: int) -> str:
    """Returns what is said when modules are refused for sharded parameters."""
    model = torch.nn.Linear(4, 4)
    Optimizer(model.parameters(), *modules())
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    try:
        Optimizer(model.parameters(), *modules())
    except ArgumentError as error:
        return str(error)
    return "none"


def nonfinite(rank: int, size: int) -> list[Any]:
    """Returns where numbers are found that only the last process has, and what is said of them."""
    model = torch.nn.Linear(4, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    optimizer = Optimizer(model.named_parameters(), ClipNorm(1.0, nonfinite="raise"), LR(0.1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    grads: list[Any] = [parameter.grad for parameter in model.parameters()]
    found = [first_nonfinite(grads)]
    grads[1].to_local()[grads[1].to_local().numel() - 1 :] = float("nan") if rank else 1.0
    found += [first_nonfinite(grads), first_nonfinite([torch.ones(1), *grads])]
    try:
        optimizer.step()
    except NonFiniteError as error:
        return [*found, str(error)]
    return found


def everything(rank: int, size: int) -> dict[str, Any]:
    """Returns the results of all that this file is for."""
    results: dict[str, Any] = {"alone": {}, "sharded": {}, "resumed": {}, "refused": {}}
    for name, modules in RIGHT.items():
        results["alone"][name] = train(*build(modules, 1), range(STEPS), 0, 1)
        results["sharded"][name] = train(*build(modules, size), range(STEPS), rank, size)
        results["resumed"][name] = resume(modules, rank, size)
    for name, modules in REFUSED.items():
        results["refused"][name] = refusal(modules, size)
    results["nonfinite"] = nonfinite(rank, size)
    early = {
        name: RIGHT[name] for name in ("gradients", "Adam", "HeavyBall", "per tensor", "LAMB", "To")
    }
    results["in backward"] = {name: in_backward(each, rank, size) for name, each in early.items()}
    results["planes"] = planes(rank, size)
    results["beside plain"] = beside_plain(size)
    return results


if __name__ == "__main__":
    run(everything)
