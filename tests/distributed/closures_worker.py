"""One of the processes of test_closures.py: trains with closures, each on its share of a batch.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from processes import run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.errors import StepError

STEPS, SAMPLES = 4, 12
# Differences are taken far enough apart that rounding does not show in the results.
CHAINS: dict[str, Sequence[str]] = {
    "lbfgs strong_wolfe": ["lbfgs()", "strong_wolfe()"],
    "lbfgs backtracking": ["lbfgs(history_size=2)", "backtracking()"],
    "lbfgs on a plane": ["intrinsic_subspace([lbfgs(), strong_wolfe()], dimension=20)"],
    "adam strong_wolfe": ["adam()", "strong_wolfe()"],
    "newton_cg": ["newton_cg(perturbation=1e-2, central=True)", "backtracking()"],
    "sam": ["sam(rho=0.5)", "lr(0.1)"],
    "adaptive sam": ["sam(rho=0.5, adaptive=True)", "lr(0.1)"],
    "spsa": ["spsa(perturbation=0.1, samples=2)", "lr(0.1)"],
    "finite_difference": ["finite_difference(perturbation=0.1)", "lr(0.1)"],
}
Way = Callable[[torch.nn.Module], torch.nn.Module]


class Sums(TorchDispatchMode):
    """Counts sums over processes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.overloadpacket._qualified_op_name == "c10d::allreduce_"
        return func(*args, **(kwargs or {}))


def alone(model: torch.nn.Module) -> torch.nn.Module:
    """Leaves a model as it is."""
    return model


def replicated(model: torch.nn.Module) -> torch.nn.Module:
    """Returns what averages the gradients of a model, in buckets that they are views of."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Shards a model over all processes; each holds less than a number of some parameters."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return fully_shard(model, mesh=mesh)


def build(modules: Sequence[str], way: Way) -> tuple[torch.nn.Module, Optimizer]:
    """Makes a model, parallel in some way, and its optimizer."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)
    model = way(torch.nn.Sequential(*layers).double())
    average = None if way is sharded else way is replicated
    return model, Optimizer(model.parameters(), *modules, average_loss=average)


def train(
    model: torch.nn.Module, optimizer: Optimizer, steps: range, rank: int, size: int
) -> dict[str, Any]:
    """Trains on this process's share of each batch; returns what must not depend on `size`."""
    evaluations = 0
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 5, dtype=torch.float64, generator=generator)
        share = inputs[rank * SAMPLES // size : (rank + 1) * SAMPLES // size]

        def closure(backward: bool = True, share: Tensor = share) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            loss: Tensor = (model(share) - share[:, :1].sin()).square().mean()
            if backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        with Sums() as sums:  # torch's CommDebugMode takes one forward pass only
            optimizer.step(closure)
    params = [param.detach() for param in model.parameters()]
    return {
        "params": [p.full_tensor() if isinstance(p, DTensor) else p for p in params],
        "evaluations": evaluations,
        "sums": sums.count,
    }


def resume(modules: Sequence[str], rank: int, size: int) -> dict[str, Any]:
    """Trains, and goes on with another model and optimizer from what torch saves of these."""
    model, optimizer = build(modules, sharded)
    train(model, optimizer, range(STEPS // 2), rank, size)
    saved = get_state_dict(model, optimizer)
    other, its = build(modules, sharded)
    train(other, its, range(1), rank, size)  # torch makes missing state by a step without closure
    set_state_dict(other, its, model_state_dict=saved[0], optim_state_dict=saved[1])
    return train(other, its, range(STEPS // 2, STEPS), rank, size)


def refusal() -> str:
    """Returns what is said where processes might drift apart."""
    weight = torch.nn.Parameter(torch.ones(2))
    try:
        Optimizer([weight], "spsa()", "lr(0.1)").step(lambda: (weight**2).sum())
    except StepError as error:
        return str(error)
    return "none"


def everything(rank: int, size: int) -> dict[str, Any]:
    """Returns the results of all that this file is for."""
    results: dict[str, Any] = {"alone": {}, "replicated": {}, "sharded": {}, "resumed": {}}
    for name, modules in CHAINS.items():
        results["alone"][name] = train(*build(modules, alone), range(STEPS), 0, 1)
        results["sharded"][name] = train(*build(modules, sharded), range(STEPS), rank, size)
        if size == 2:
            made = build(modules, replicated)
            results["replicated"][name] = train(*made, range(STEPS), rank, size)
    for name in ("lbfgs backtracking", "spsa"):
        results["resumed"][name] = resume(CHAINS[name], rank, size)
    results["refused"] = refusal()
    return results


if __name__ == "__main__":
    run(everything)
