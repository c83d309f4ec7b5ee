"""One of the processes of test_norms.py: steps parameters that are sharded in several ways.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from processes import run
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from projcore import Optimizer
from projcore.errors import NonFiniteError

STEPS = 3
# Sides that no number of processes divides, that one of them has nothing of, and filters.
SHAPES = [(16, 5), (16,), (7, 16), (7,), (1, 3), (1,), (4, 3, 2, 2)]
CHAINS: dict[str, Sequence[str]] = {
    "clip": ["clip_norm(0.1)", "adam()", "lr(0.1)"],
    "clip inf": ['clip_norm(0.1, norm_type="inf")', "lr(0.1)"],
    "clip order 3": ["clip_norm(0.1, norm_type=3.0)", "lr(0.1)"],
    "clip each": ["clip_norm(0.1, per_tensor=True)", "lr(0.1)"],
    "clip value": ["clip_value(0.1)", "lr(0.1)"],
    "normalize": ["normalize()", "lr(0.1)"],
    "normalize all": ["normalize(per_tensor=False)", "lr(0.1)"],
    "normalize rows": ["normalize(dim=1)", "lr(0.1)"],
    "normalize columns": ["normalize(dim=0)", "lr(0.1)"],
    "centralize": ["centralize()", "lr(0.1)"],
    "growth": ["norm_growth_limiter()", "lr(0.1)"],
    "trust ratio": ["adam()", "trust_ratio()", "lr(0.1)"],
    "lamb": ["lamb()", "lr(0.1)"],
    "lars": ["lars()", "lr(0.1)"],
    "adafactor": ["adafactor(weight_decay=0.1)"],
    "adafactor alone": ["adafactor(lr=None)", "lr(0.1)"],
    "adam mini": ["adam_mini()", "lr(0.1)"],
    "adam mini rows": ['adam_mini(block="row")', "lr(0.1)"],
}
Layout = Callable[[Tensor], list[Any]]
LAYOUTS: dict[int, dict[str, tuple[tuple[int, ...], Layout]]] = {
    2: {
        "rows": ((2,), lambda tensor: [Shard(0)]),
        "columns": ((2,), lambda tensor: [Shard(min(1, tensor.ndim - 1))]),
    },
    3: {"rows": ((3,), lambda tensor: [Shard(0)])},
    4: {
        "hybrid": ((2, 2), lambda tensor: [Replicate(), Shard(0)]),
        "grid of some": (
            (2, 1, 2),
            lambda tensor: [
                Replicate(),
                Shard(0),
                Shard(1) if tensor.ndim > 1 else Replicate(),
            ],
        ),
        "grid": ((2, 2), lambda tensor: [Shard(0), Shard(1) if tensor.ndim > 1 else Replicate()]),
    },
}


def tensors(seed: int, dtypes: Sequence[torch.dtype] = (torch.float64,)) -> list[Tensor]:
    """Returns whole tensors, the same in all processes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[i % len(dtypes)])
        for i, shape in enumerate(SHAPES)
    ]


def train(
    modules: Sequence[str], shard: Callable[[int, Tensor], Tensor], **options: Any
) -> tuple[list[Tensor], int]:
    """Returns parameters after some steps, and how many collectives the last one took."""
    dtypes = options.pop("dtypes", (torch.float64,))
    params = [torch.nn.Parameter(shard(i, tensor)) for i, tensor in enumerate(tensors(0, dtypes))]
    optimizer = Optimizer(params, *modules, **options)
    for step in range(1, STEPS + 1):
        for i, (param, grad) in enumerate(zip(params, tensors(step, dtypes), strict=True)):
            param.grad = shard(i, grad * step)
        with CommDebugMode() as counted:
            optimizer.step()
    return [whole(param) for param in params], counted.get_total_counts()


def whole(tensor: Any) -> Tensor:
    """Returns a tensor put together from its shards."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def alone(i: int, tensor: Tensor) -> Tensor:
    """Keeps a tensor whole."""
    return tensor.clone()


def sharder(mesh: DeviceMesh, layout: Layout) -> Callable[[int, Tensor], Tensor]:
    """Returns what shards a tensor over a mesh."""
    return lambda i, tensor: distribute_tensor(tensor, mesh, layout(tensor), src_data_rank=None)


def kept(shard: Callable[[int, Tensor], Tensor]) -> int:
    """Returns how many bytes this process keeps of a matrix under Adafactor."""
    optimizer = Optimizer([torch.nn.Parameter(shard(0, torch.ones(40, 66)))], "adafactor()")
    return optimizer.memory().state


def special(shard: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """Returns what is found with other dtypes, beside whole parameters, compiled, and checked."""
    clip = ["clip_norm(0.1)", "lr(0.1)"]
    mixed = {"dtypes": (torch.float64, torch.float32)}
    beside: Callable[[int, Tensor], Tensor] = lambda i, tensor: (  # noqa: E731
        shard(i, tensor) if i % 2 else alone(i, tensor)
    )
    cases: dict[str, tuple[Sequence[str], Any, dict[str, Any]]] = {
        "mixed": (clip, shard, mixed),
        "beside plain": (clip, beside, {}),
        "beside plain each": (CHAINS["lamb"], beside, {}),
        "compiled": (CHAINS["lamb"], shard, {"compile": {"backend": "aot_eager"}}),
        "checked": (["lr(0.1)"], shard, {"nonfinite": "raise"}),
    }
    return {
        name: {"alone": train(modules, alone, **options), "sharded": train(modules, how, **options)}
        for name, (modules, how, options) in cases.items()
    }


def one_process_has_nan(shard: Callable[[int, Tensor], Tensor], rank: int) -> str:
    """Returns what is said when a single process has NaN in its part."""
    param: Any = torch.nn.Parameter(shard(0, torch.ones(4, 2)))
    param.grad = shard(0, torch.ones(4, 2))
    param.grad.to_local()[0, 0] = float("nan") if rank == 0 else 1.0
    modules = 'clip_norm(1.0, norm_type="inf", nonfinite="raise")', "lr(0.1)"
    try:
        Optimizer([param], *modules).step()
    except NonFiniteError as error:
        return str(error)
    return "none"


def everything(rank: int, size: int) -> dict[str, Any]:
    """Returns the results of all that this file is for."""
    results: dict[str, Any] = {"alone": {}, "kept": {"alone": kept(alone)}}
    for name, modules in CHAINS.items():
        results["alone"][name] = train(modules, alone)[0]
    for name, (shape, layout) in LAYOUTS[size].items():
        shard = sharder(init_device_mesh("cpu", shape), layout)
        results[name] = {chain: train(modules, shard) for chain, modules in CHAINS.items()}
        results["kept"][name] = kept(shard)
    if size == 2:
        shard = sharder(init_device_mesh("cpu", (2,)), lambda tensor: [Shard(0)])
        results["special"] = special(shard)
        results["nan"] = one_process_has_nan(shard, rank)
    return results


if __name__ == "__main__":
    run(everything)
