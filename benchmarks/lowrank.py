"""Times the steps of low-rank methods, as ratios within one run, on one thread.

What is compared runs in turn, round by round; what is reported is the median of the ratios, and the
ratio of the least times. Times are those of the thread, so that what else runs on the machine
disturbs less. ``--peers`` adds the authors' packages; they are in the environment that ``make
parity`` makes::

    PYTHONPATH=parity/stand_ins .venv-parity/bin/python benchmarks/lowrank.py --peers
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer
from projcore.modules import LR, Adam
from projcore.projections import LowRank
from projcore.recipes import apollo_mini, fira, galore_adamw

Run = Callable[[], object]
NEVER = 10**9  # steps until the next refresh

# The matrices of two layers of LLaMA: attention, then the parts of the feed-forward network.
SHAPES = {
    "llama-60m": ([(512, 512)] * 8 + [(1376, 512)] * 4 + [(512, 1376)] * 2, 128),
    "llama-130m": ([(768, 768)] * 8 + [(2048, 768)] * 4 + [(768, 2048)] * 2, 256),
}


def parameters(shapes: Sequence[tuple[int, ...]]) -> list[Parameter]:
    """Returns parameters that have gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each run in each round; two rounds before them warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if number >= 2:
                seconds[name].append(time.thread_time() - begin)
    return seconds


def report(title: str, runs: dict[str, Run], rounds: int) -> None:
    """Prints what each takes, relative to the first."""
    seconds = measure(runs, rounds)
    first, *others = seconds
    print(f"\n{title}; {first}: {statistics.median(seconds[first]) * 1e3:.1f} ms")
    for name in others:
        pairs = zip(seconds[name], seconds[first], strict=True)
        median = statistics.median(a / b for a, b in pairs)
        least = min(seconds[name]) / min(seconds[first])
        print(f"    {name}: {median:.2f} (of the least times {least:.2f})")


def products(optimizer: Optimizer, params: list[Parameter]) -> Run:
    """Returns a function that makes the two products of each matrix with its basis, and no more."""
    bases = []
    for param in params:
        state = optimizer.state[param]
        end = "left" if "0/left" in state else "right"
        bases.append((end, state[f"0/{end}"].clone(), param.detach().clone(), param.grad))

    def run() -> None:
        for end, basis, target, gradient in bases:
            if end == "left":
                target.addmm_(basis, basis.mT @ gradient, alpha=-1e-9)
            else:
                target.addmm_(gradient @ basis, basis.mT, alpha=-1e-9)

    return run


def step_of(optimizer: torch.optim.Optimizer) -> Run:
    """Returns a function that takes a step; the first is taken, with the refresh that is in it."""
    optimizer.step()
    return lambda: optimizer.step()


def between_refreshes(name: str, rounds: int) -> None:
    """GaLore with Adam inside, against its products."""
    shapes, rank = SHAPES[name]
    runs: dict[str, Run] = {}
    for label, size in (("whole", None), ("in buckets of 8 MB", 8 << 20)):
        params = parameters(shapes)
        inside = LowRank([Adam()], rank=rank, period=NEVER, stagger=False)
        optimizer = Optimizer(params, inside, LR(1e-4), bucket_bytes=size)
        run = step_of(optimizer)
        runs.setdefault("the two products", products(optimizer, params))
        runs[f"GaLore([Adam]), {label}"] = run
    params = parameters(shapes)
    rough = LowRank([Adam()], rank=rank, period=NEVER, stagger=False, compute_dtype="bfloat16")
    runs["GaLore([Adam]), products in bfloat16"] = step_of(Optimizer(params, rough, LR(1e-4)))
    report(f"{name}, rank {rank}, between refreshes", runs, rounds)


def against_adamw(name: str, rounds: int) -> None:
    """Recipes against torch's fused AdamW."""
    shapes, rank = SHAPES[name]
    runs: dict[str, Run] = {}
    fused = torch.optim.AdamW(parameters(shapes), 1e-4, fused=True)
    runs["torch's fused AdamW"] = step_of(fused)
    settings: dict[str, Any] = {"lr": 1e-4, "period": NEVER}
    runs["apollo_mini"] = step_of(apollo_mini(parameters(shapes), **settings))
    runs["fira"] = step_of(fira(parameters(shapes), rank=rank, **settings))
    runs["galore_adamw"] = step_of(galore_adamw(parameters(shapes), rank=rank, **settings))
    report(name, runs, rounds)


def staggered(name: str, period: int) -> None:
    """The slowest step of a period with refreshes spread over it, against the median step."""
    shapes, rank = SHAPES[name]
    made = LowRank([Adam()], rank=rank, period=period)
    optimizer = Optimizer(parameters(shapes), made, LR(1e-4))
    optimizer.step()
    rounds = []
    for _ in range(3):  # the least of three takes out what else ran on the machine
        seconds = []
        for _ in range(period):
            begin = time.thread_time()
            optimizer.step()
            seconds.append(time.thread_time() - begin)
        rounds.append(seconds)
    least = [min(times) for times in zip(*rounds, strict=True)]
    print(
        f"\n{name}, refreshes of {len(shapes)} matrices spread over {period} steps: the slowest "
        f"step takes {max(least) / statistics.median(least):.2f} times the median step"
    )


def extra_memory(name: str) -> None:
    """What a step takes beside state and gradients, relative to the parameters."""
    from projcore_lab.memory import PeakMemory

    shapes, rank = SHAPES[name]
    for label, size in (("whole", None), ("in buckets of 1 MB", 1 << 20)):
        params = parameters(shapes * 8)
        inside = LowRank([Adam()], rank=rank, period=NEVER, stagger=False)
        optimizer = Optimizer(params, inside, LR(1e-4), bucket_bytes=size)
        optimizer.step()
        with PeakMemory() as memory:
            optimizer.step()
        share = memory.peak / sum(param.nbytes for param in params)
        print(f"{name} x 16 layers, {label}: a step takes {share:.1%} of the parameters beside")


def peers(name: str, rounds: int) -> None:
    """Recipes against their authors' packages."""
    from apollo_torch import APOLLOAdamW
    from fira import FiraAdamW
    from galore_torch import GaLoreAdamW

    shapes, rank = SHAPES[name]
    group = {"rank": rank, "update_proj_gap": NEVER, "proj_type": "std"}
    mini = {**group, "rank": 1, "proj": "random", "scale_type": "tensor", "scale": 128}

    def theirs(make: Any, options: dict[str, Any]) -> Run:
        params: list[Tensor] = list(parameters(shapes))
        return step_of(make([{"params": params, **options}], lr=1e-4))

    ours: dict[str, Any] = {"lr": 1e-4, "period": NEVER}
    for label, first, second in (
        (
            "galore",
            theirs(GaLoreAdamW, {**group, "scale": 0.25}),
            galore_adamw(parameters(shapes), rank=rank, **ours),
        ),
        (
            "fira",
            theirs(FiraAdamW, {**group, "alpha": 0.25}),
            fira(parameters(shapes), rank=rank, **ours),
        ),
        ("apollo_mini", theirs(APOLLOAdamW, mini), apollo_mini(parameters(shapes), **ours)),
    ):
        runs = {f"the authors' {label}": first, "ours": step_of(second)}
        report(f"{name}, rank {rank}", runs, rounds)


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--period", type=int, default=50, help="of the staggered refreshes")
    parser.add_argument("--peers", action="store_true", help="the authors' packages, and no more")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Once freed, it makes the allocator keep what is freed later, as it does where a model trains.
    torch.empty(7 << 20)
    print(f"torch {torch.__version__}, one thread, float32, load {os.getloadavg()}")
    for name in SHAPES:
        if arguments.peers:
            peers(name, arguments.rounds)
            continue
        between_refreshes(name, arguments.rounds)
        against_adamw(name, arguments.rounds)
        staggered(name, arguments.period)
        extra_memory(name)


if __name__ == "__main__":
    main()
