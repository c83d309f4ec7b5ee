"""Times the transforms of projcore-spectral, as ratios within one run, on one thread.

What is compared runs in turn, round by round, so a machine that slows down slows all alike; what is
reported is the median of the ratios, and the ratio of the least times. Times are of the processor,
not of the clock, so that what else runs there matters less. Run it by hand::

    python benchmarks/transforms.py --rounds 15 --length 25557032
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import scipy.fft
import torch
from torch import Tensor

from projcore import Optimizer, ProjectionBase
from projcore.modules import LR, Adam
from projcore.projections import DCT, Fourier

Run = Callable[[], object]


def both_ways(projection: ProjectionBase, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Returns a function that projects the tensors and brings them back."""
    states: list[Any] = [{} for _ in tensors]
    facts: Any = (tensors, None, None, states, states, "update")

    def run() -> list[Tensor]:
        return list(projection.unproject(projection.project(tensors, *facts), *facts))

    return run


def step(tensors: list[Tensor], *modules: Any) -> Run:
    """Returns a function that takes a step."""
    params = [torch.nn.Parameter(tensor.clone()) for tensor in tensors]
    for param, tensor in zip(params, tensors, strict=True):
        param.grad = tensor
    optimizer = Optimizer(params, *modules)
    return lambda: optimizer.step()


def compare(title: str, runs: dict[str, Run], rounds: int) -> None:
    """Prints what the first takes, relative to the sum of the others."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if number:
                seconds[name].append(time.thread_time() - begin)
    first, *others = seconds.values()
    median = statistics.median(a / sum(rest) for a, *rest in zip(first, *others, strict=True))
    least = min(first) / sum(map(min, others))
    print(f"{title}: {median:.2f} (of the least times {least:.2f})")
    for name, times in seconds.items():
        print(f"    {name}: {statistics.median(times) * 1e3:.1f} ms, least {min(times) * 1e3:.1f}")


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--length", type=int, default=25_557_032)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(
        7 << 20
    )  # once freed, glibc's malloc keeps smaller blocks instead of unmapping them
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()}")
    with torch.no_grad():
        tensors = [torch.randn(args.side, args.side) for _ in range(args.count)]
        arrays = [tensor.numpy() for tensor in tensors]
        shapes = f"{args.count} of {args.side}x{args.side}"
        makers: dict[str, tuple[Callable[..., ProjectionBase], Callable[..., Any], Any]] = {
            "dct": (DCT, scipy.fft.dctn, scipy.fft.idctn),
            "fourier": (Fourier, scipy.fft.fftn, scipy.fft.ifftn),
        }
        for name, (make, there, back) in makers.items():
            ours = both_ways(make([LR(1.0)]), tensors)

            def scipys(there: Any = there, back: Any = back) -> list[Any]:
                options = {"norm": "ortho", "workers": 1}
                return [back(there(array, **options), **options) for array in arrays]

            compare(
                f"{name} both ways / scipy.fft, {shapes}",
                {"ours": ours, "scipy": scipys},
                args.rounds,
            )
            inside = step(tensors, make([Adam()]), LR(1e-3))
            outside = step(tensors, Adam(), LR(1e-3))
            compare(
                f"Adam in {name} / (both ways + Adam), {shapes}",
                {"inside": inside, "both ways": ours, "Adam": outside},
                args.rounds,
            )
        vector = torch.randn(args.length)
        padded = both_ways(Fourier([LR(1.0)], pad=True), [vector])
        compare(
            f"fourier(pad=True) both ways / torch.fft at the exact length, {args.length}",
            {
                "padded": padded,
                "exact": lambda: torch.fft.irfft(torch.fft.rfft(vector), n=args.length),
            },
            max(1, args.rounds // 5),
        )


if __name__ == "__main__":
    main()
