"""Times steps in which other matrices have a gradient each time, as those of experts do.

Of 384 matrices, 48 have a gradient, drawn anew in every step. All optimizers step in turn, round by
round, on one thread of the CPU; times are those of the thread, and medians of the rounds::

    python -m benchmarks.experts --rounds 60 --only muon
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter

from projcore import Optimizer, recipes

COUNT, ACTIVE, SIDE = 384, 48, 32
Named = list[tuple[str, Parameter]]

OPTIMIZERS: dict[str, Callable[[Named], torch.optim.Optimizer]] = {
    "torch.optim.Adam(fused=True)": lambda named: torch.optim.Adam(named, fused=True),
    "torch.optim.Adam()": torch.optim.Adam,
    "adam; lr": lambda named: Optimizer(named, "adam(); lr(1e-3)"),
    "clip_norm; adam; lr": lambda named: Optimizer(named, "clip_norm(1.0); adam(); lr(1e-3)"),
    "vector([adam, lr])": lambda named: Optimizer(named, "vector([adam(), lr(1e-3)])"),
    "galore_adamw(rank=8)": lambda named: recipes.galore_adamw(named, rank=8),
    "muon_adamw": recipes.muon_adamw,
    "torch.optim.Muon()": torch.optim.Muon,
}


def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", metavar="TEXT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for title, make in OPTIMIZERS.items():
        if arguments.only in title:
            named = [(f"{i}.weight", Parameter(torch.randn(SIDE, SIDE))) for i in range(COUNT)]
            runs.append((title, named, make(named)))
    seconds: dict[str, list[float]] = {title: [] for title, *_ in runs}
    gradient = torch.randn(SIDE, SIDE)
    for step in range(arguments.rounds + 3):
        chosen = set(random.Random(step).sample(range(COUNT), ACTIVE))
        for title, named, optimizer in runs:
            for i, (_, parameter) in enumerate(named):
                parameter.grad = gradient.clone() if i in chosen else None
            begin = time.thread_time()
            optimizer.step()
            seconds[title].append(time.thread_time() - begin)
    for title, times in seconds.items():
        print(f"{title:30} {statistics.median(times[3:]) * 1e3:7.2f} ms")


if __name__ == "__main__":
    main()
