"""Times one optimizer step, ours against torch.optim's, as ratios within one run.

Every optimizer steps in turn, round by round, so a machine that slows down slows all alike; what is
reported is the median of the ratios. Run it with ``make bench``, or by hand::

    python benchmarks/step.py --threads 1 --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from projcore import Optimizer

Params = list[torch.nn.Parameter]
Make = Callable[[Params], torch.optim.Optimizer]

SHAPES = {
    "3 of 2048x2048": [(2048, 2048)] * 3,
    "36 of 512x512": [(512, 512)] * 36,
    "100 of 64x64": [(64, 64)] * 100,
    "1000 of 10": [(10,)] * 1000,
}
ADAM: dict[str, Make] = {
    "torch for-loop": lambda params: torch.optim.Adam(params, 1e-3, foreach=False),
    "torch foreach": lambda params: torch.optim.Adam(params, 1e-3, foreach=True),
    "torch fused": lambda params: torch.optim.Adam(params, 1e-3, fused=True),
    "adam(); lr": lambda params: Optimizer(params, "adam(); lr(0.001)"),
    "vector([adam(), lr])": lambda params: Optimizer(params, "vector([adam(), lr(0.001)])"),
    "scalar([adam(), lr])": lambda params: Optimizer(params, "scalar([adam(), lr(0.001)])"),
    "compile=True": lambda params: Optimizer(params, "adam(); lr(0.001)", compile=True),
}
WIDE: dict[str, Make] = {
    "vector([normalize()])": lambda params: Optimizer(params, "vector([normalize()]); lr(0.001)"),
    "scalar([normalize()])": lambda params: Optimizer(params, "scalar([normalize()]); lr(0.001)"),
    "normalize()": lambda params: Optimizer(params, "normalize(); lr(0.001)"),
}


def measure(
    shapes: list[tuple[int, ...]], makers: dict[str, Make], rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of each step of each optimizer."""
    optimizers = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizers[name] = make(params)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for number in range(rounds + 3):
        for name, optimizer in optimizers.items():
            begin = time.perf_counter()
            optimizer.step()
            if number >= 3:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def report(title: str, seconds: dict[str, list[float]], console: Console) -> None:
    """Prints the median time of each optimizer and its median ratio to the first."""
    first, *_ = seconds
    table = Table(title=title)
    table.add_column("optimizer")
    table.add_column("ms", justify="right")
    table.add_column(escape(f"/ {first}"), justify="right")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[first], strict=True))
        table.add_row(escape(name), f"{statistics.median(times) * 1e3:.2f}", f"{ratio:.2f}")
    console.print(table)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave out compile=True")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    console.print(f"torch {torch.__version__}, {arguments.threads} threads, float32")
    makers = {k: v for k, v in ADAM.items() if not (arguments.no_compile and "compile" in k)}
    for title, shapes in SHAPES.items():
        # A graph of a thousand tensors takes minutes to compile; it is left out.
        chosen = {k: v for k, v in makers.items() if len(shapes) < 500 or "compile" not in k}
        report(f"Adam, {title}", measure(shapes, chosen, arguments.rounds), console)
    wide = measure([(300, 300), (100, 100)], WIDE, arguments.rounds)
    report("100 000 scalars, each normalized", wide, console)


if __name__ == "__main__":
    main()
