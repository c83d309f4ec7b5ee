"""Times a low-rank AdamW step on sharded matrices: by owners, and by products on the shards.

Matrices are sharded by rows over processes that communicate by gloo. The same step, without a
refresh, is run

* by our optimizer, whose owners get full matrices,
* by hand with `DTensor`: the basis and the moments are sharded, too,
* by hand with local shards, and explicit collectives for all matrices together.

The ways run in turn, step by step. Times are medians over steps, in the first process; bytes are
those that a process sends to others if collectives are optimal::

    python -m benchmarks.owners --processes 4 --rank 128
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.modules import LR, Adam, WeightDecay
from projcore.projections import LowRank

# Two layers of LLaMA: attention, then the parts of the feed-forward network.
SHAPES = [(512, 512)] * 8 + [(1376, 512)] * 4 + [(512, 1376)] * 2
BETAS, EPS, RATE, DECAY = (0.9, 0.999), 1e-8, 1e-3, 0.1
NEVER = 10**9  # steps until the next refresh


class Traffic(TorchDispatchMode):
    """Counts collectives, and the bytes that this process sends in them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(each is DTensor for each in types):
            return NotImplemented  # it calls this again, with shards
        space, _, name = func.overloadpacket._qualified_op_name.partition("::")
        if space in ("c10d", "_c10d_functional") and not name.startswith(("wait", "_wrap")):
            self.count += 1
            self.bytes += _sent(name, args)
        return func(*args, **(kwargs or {}))


def _sent(name: str, args: tuple[Any, ...]) -> int:
    """Returns the bytes that this process sends in a collective."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if name == "alltoall_base_":
        sent, counts = args[1], args[4]
        return int(sent.nbytes - counts[rank] * sent.itemsize)
    if name == "_allgather_base_":
        return int(args[1].nbytes * (size - 1))
    if name == "all_gather_into_tensor":
        return int(args[0].nbytes * (size - 1))
    if name == "_reduce_scatter_base_":
        return int(args[1].nbytes * (size - 1) // size)
    if name == "reduce_scatter_tensor":
        return int(args[0].nbytes * (size - 1) // size)
    raise NotImplementedError(name)


def adam(grads: list[Tensor], means: list[Tensor], squares: list[Tensor], step: int) -> Any:
    """Returns the updates of Adam, of lists of tensors."""
    torch._foreach_lerp_(means, grads, 1 - BETAS[0])
    torch._foreach_mul_(squares, BETAS[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - BETAS[1])
    scales = torch._foreach_sqrt(torch._foreach_div(squares, 1 - BETAS[1] ** step))
    torch._foreach_add_(scales, EPS)
    updates = torch._foreach_div(means, scales)
    torch._foreach_div_(updates, 1 - BETAS[0] ** step)
    return updates


class ByTensors:
    """Products of `DTensor`, one matrix after the other.

    Args:
        params: The parameters, which have gradients.
        bases: Their bases: of rows (``G Q``) if a matrix has no fewer rows than columns.
    """

    def __init__(self, params: list[DTensor], bases: list[Tensor]) -> None:
        self.params, self.step_count = params, 0
        mesh = params[0].device_mesh
        self.bases = [distribute_tensor(basis, mesh, [Shard(0)]) for basis in bases]
        grads = [self.project(i, self.gather(i)) for i in range(len(params))]
        self.means = [torch.zeros_like(grad) for grad in grads]
        self.squares = [torch.zeros_like(grad) for grad in grads]

    def gather(self, i: int) -> Any:
        """Returns a basis as products need it: a basis of rows in full, once in a step."""
        rows, columns = self.params[i].shape
        basis: Any = self.bases[i]
        return basis.redistribute(placements=[Replicate()]) if rows >= columns else basis

    def project(self, i: int, basis: Any) -> Any:
        """Returns a projected gradient, sharded."""
        grad = self.params[i].grad
        assert grad is not None
        if grad.shape[0] >= grad.shape[1]:
            return grad @ basis
        return (basis.mT @ grad).redistribute(placements=[Shard(1)])  # summed, and sharded

    @torch.no_grad()
    def step(self) -> None:
        """Steps all parameters."""
        self.step_count += 1
        for i, param in enumerate(self.params):
            basis = self.gather(i)
            grads = [self.project(i, basis)]
            (update,) = adam(grads, [self.means[i]], [self.squares[i]], self.step_count)
            if param.shape[0] >= param.shape[1]:
                update = update @ basis.mT
            else:
                update = basis @ update.redistribute(placements=[Replicate()])
            param.mul_(1 - RATE * DECAY).sub_(update, alpha=RATE)


class ByShards:
    """Products of local shards, with a reduction and a gather for all matrices together.

    Args: as `ByTensors`; rows and columns are divisible by the number of processes.
    """

    def __init__(self, params: list[DTensor], bases: list[Tensor]) -> None:
        self.size, me, self.step_count = dist.get_world_size(), dist.get_rank(), 0
        self.params = [param.to_local() for param in params]
        self.grads = [param.grad.to_local() for param in params]  # type: ignore[union-attr]
        self.bases = [basis.chunk(self.size)[me].contiguous() for basis in bases]
        shapes = [param.shape for param in params]
        self.right = [i for i, (rows, columns) in enumerate(shapes) if rows >= columns]
        self.left = [i for i, (rows, columns) in enumerate(shapes) if rows < columns]
        rank = bases[0].shape[1]
        self.means = [self.grads[0].new_zeros(len(self.params[i]), rank) for i in self.right]
        self.means += [self.grads[0].new_zeros(shapes[i][1] // self.size, rank) for i in self.left]
        self.squares = [torch.zeros_like(mean) for mean in self.means]

    def gather(self, parts: list[Tensor]) -> list[Tensor]:
        """Returns full matrices, of which each process has some rows."""
        sent = torch.cat([part.reshape(-1) for part in parts])
        found = sent.new_empty(self.size * sent.numel())
        dist.all_gather_into_tensor(found, sent)
        pieces = found.view(self.size, -1).split([part.numel() for part in parts], dim=1)
        return [piece.reshape(-1, part.shape[1]) for piece, part in zip(pieces, parts, strict=True)]

    def scatter(self, full: list[Tensor]) -> list[Tensor]:
        """Returns the rows that are of this process of the sums of matrices over processes."""
        sent = torch.cat([each.reshape(self.size, -1) for each in full], dim=1).view(-1)
        found = sent.new_empty(sent.numel() // self.size)
        dist.reduce_scatter_tensor(found, sent)
        pieces = found.split([each.numel() // self.size for each in full])
        return [piece.view(-1, each.shape[1]) for piece, each in zip(pieces, full, strict=True)]

    @torch.no_grad()
    def step(self) -> None:
        """Steps all parameters."""
        self.step_count += 1
        bases = self.gather([self.bases[i] for i in self.right])
        grads = [self.grads[i] @ basis for i, basis in zip(self.right, bases, strict=True)]
        grads += self.scatter([self.grads[i].mT @ self.bases[i] for i in self.left])
        updates = adam(grads, self.means, self.squares, self.step_count)
        own, others = updates[: len(self.right)], self.gather(updates[len(self.right) :])
        torch._foreach_mul_(self.params, 1 - RATE * DECAY)
        for i, update, basis in zip(self.right, own, bases, strict=True):
            self.params[i].addmm_(update, basis.mT, alpha=-RATE)
        for i, update in zip(self.left, others, strict=True):
            self.params[i].addmm_(self.bases[i], update.mT, alpha=-RATE)


class Way(NamedTuple):
    """One of the ways to step.

    Attributes:
        params: Its parameters.
        step: Steps them.
    """

    params: list[Any]
    step: Callable[[], object]


def parameters(dtype: torch.dtype) -> list[Any]:
    """Returns sharded parameters that have gradients."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in SHAPES:
        values, grad = (
            distribute_tensor(each.to(dtype), mesh, [Shard(0)], src_data_rank=None)
            for each in torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        )
        params.append(torch.nn.Parameter(values))
        params[-1].grad = grad
    return params


def owners(rank: int, dtype: torch.dtype) -> tuple[Way, list[Tensor]]:
    """Returns the way by owners, and the bases that these found in a first step."""
    params = parameters(dtype)
    low_rank = LowRank([Adam(BETAS, EPS)], rank=rank, period=NEVER, refresh="svd")
    optimizer = Optimizer(params, low_rank, WeightDecay(DECAY), LR(RATE))
    optimizer.step()
    state = optimizer.state_dict()["state"]
    bases = [
        value.full_tensor() if isinstance(value, DTensor) else value
        for entries in state.values()
        for key, value in entries.items()
        if key.endswith(("/right", "/left"))
    ]
    return Way(params, optimizer.step), bases


def ways(rank: int, dtype: torch.dtype) -> dict[str, Way]:
    """Returns the ways, after a first step."""
    first, bases = owners(rank, dtype)
    found = {"owners": first}
    for name, kind in (("DTensor", ByTensors), ("shards", ByShards)):
        params = parameters(dtype)
        way = kind(params, bases)
        way.step()
        found[name] = Way(params, way.step)
    return found


def check(rank: int) -> float:
    """Returns the largest difference of parameters after some steps, in float64."""
    found = ways(rank, torch.float64)
    for _ in range(3):
        for way in found.values():
            way.step()
    expected = found.pop("owners").params
    return max(
        float((one - other).to_local().detach().abs().max())
        for way in found.values()
        for one, other in zip(way.params, expected, strict=True)
    )


def run(place: int, size: int, meet: str, arguments: argparse.Namespace) -> None:
    """Runs one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=place, world_size=size)
    difference = check(arguments.rank)
    found = ways(arguments.rank, torch.float32)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for number in range(arguments.steps + 2):
        for name, way in found.items():
            dist.barrier()
            begin = time.perf_counter(), time.process_time()
            way.step()
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if number >= 2:
                times[name].append(spent)
    traffic = {}
    for name, way in found.items():
        with Traffic() as traffic[name]:
            way.step()
    if place == 0:
        print(f"{size} processes, rank {arguments.rank}, differences up to {difference:.0e}")
        for name, counted in traffic.items():
            wall, own = (statistics.median(each) * 1e3 for each in zip(*times[name], strict=True))
            print(
                f"{name:8} {wall:7.1f} ms, {own:7.1f} ms of one CPU; {counted.count:3} "
                f"collectives, {counted.bytes / 2**20:6.2f} MiB sent",
                flush=True,
            )
    dist.barrier()
    os._exit(0)  # threads of gloo may outlive the group


def main() -> None:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="2 or 4")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            run, (arguments.processes, f"{folder}/meet", arguments), arguments.processes
        )


if __name__ == "__main__":
    main()
