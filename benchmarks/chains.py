"""Times whole steps of chains of modules against torch's fused Adam, and counts their memory.

Both step in turn, round by round, on one thread of the CPU, so a machine that slows down slows both
alike. A ratio is the median of the ratios of the rounds; beside it stands the ratio of the 10th
percentiles. Times are those of the thread, so that other programs disturb less. Extra memory is the
most bytes that are alive at once in the third step, beside the parameters, their gradients and the
state that the optimizer holds before it, divided by the bytes of the parameters. Each number has
its goal beside it, and is red if it misses it. Run it with ``make bench``, or by hand::

    python benchmarks/chains.py --rounds 30 --only clip_norm --json chains.json
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch.nn import Parameter

from projcore import Optimizer
from projcore_lab.memory import PeakMemory

Shapes = list[tuple[int, ...]]
SECONDS = 0.5  # small cases take more rounds than asked for, until this has passed


@dataclass(frozen=True)
class Case:
    """A chain on some parameters, the optimizer of torch beside it, and goals."""

    params: str  # a key of SHAPES
    chain: str
    time_goal: float | None
    memory_goal: float
    dtype: torch.dtype = torch.float32
    peer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam

    @property
    def title(self) -> str:
        """Says what the parameters are."""
        count, dtype = len(SHAPES[self.params]), str(self.dtype).removeprefix("torch.")
        return f"{self.params}, {count} tensors, {dtype}"

    @property
    def name(self) -> str:
        """Tells the case from others."""
        return f"{self.title}: {self.chain}"


@dataclass(frozen=True)
class Result:
    """Of a case: milliseconds of a step, ratios to torch, bytes relative to the parameters'."""

    milliseconds: float
    torch_milliseconds: float
    ratio: float
    ratio_of_10th_percentiles: float
    extra_memory: float
    rounds: int


def resnet50() -> Shapes:
    """Returns the shapes of the parameters of ResNet-50."""
    convolutions: Shapes = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions += [(width, channels, 1, 1), (width, width, 3, 3)]
            convolutions.append((4 * width, width, 1, 1))
            if block == 0:  # the shortcut changes the number of channels
                convolutions.append((4 * width, channels, 1, 1))
            channels = 4 * width
    # A batch normalization, of weight and bias, follows each convolution.
    normalized: Shapes = [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
    return [*normalized, (1000, channels), (1000,)]


SHAPES: dict[str, Shapes] = {
    "ResNet-50": resnet50(),
    "ResNet-50's matrices": [(rows, math.prod(rest)) for rows, *rest in resnet50() if rest],
    "10M numbers": [(500, 500)] * 40,
    "1000 elements each": [(1000,)] * 2000,
    "10 elements each": [(10,)] * 1000,
    "10 elements each, few": [(10,)] * 10,
    "100 elements each": [(100,)] * 1000,
}
INSIDE = "[adam(), lr(1e-3)]"
ROUTES = 'route({"ndim>=2": ["adam()", "lr(1e-3)"], "*": ["adam()", "lr(1e-3)"]})'
ADAMW = torch.optim.AdamW

# A step needs no extra memory where a fused kernel reads the gradients and writes the parameters;
# elsewhere it needs an update, which is as large as the parameters.
CASES = [
    Case("ResNet-50", f"vector({INSIDE})", 1.0, 0),
    Case("ResNet-50", ROUTES, 1.05, 0),
    Case("ResNet-50", "clip_norm(1.0); adam(); lr(1e-3)", 1.5, 1),
    Case("ResNet-50", "vector([clip_norm(1.0), adam(), lr(1e-3)])", 1.5, 1),
    Case("ResNet-50", "adam(); lr(1e-3); polyak_averaging(0.999)", 1.8, 1),
    Case("ResNet-50", f'to({INSIDE}, "float64")', 3.0, 1),
    Case("ResNet-50", f'to({INSIDE}, "bfloat16")', 2.0, 1),
    Case("ResNet-50", "adamw(); lr(1e-3)", 1.0, 0, peer=ADAMW),
    Case("ResNet-50's matrices", "muon(); lr(0.02)", None, 1, peer=ADAMW),
    Case("ResNet-50", f'to({INSIDE}, "float32", master=True)', None, 1, torch.bfloat16),
    Case("10M numbers", f"view_as_real({INSIDE})", 1.05, 0, torch.complex64, ADAMW),
    Case("1000 elements each", "adam(); lr(1e-3)", 0.6, 0),
    Case("10 elements each", "adam(); lr(1e-3)", 0.6, 0),
    Case("10 elements each, few", "adam(); lr(1e-3)", 1.0, 0),
    Case("100 elements each", f"scalar({INSIDE})", 1.0, 0),
]


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, but for blocks of 32 MiB and more, which it always maps.

    Otherwise it returns the memory of an update to the system after some steps and not after
    others, as chance has it, and the page faults of the next step double the time of some chains.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its maximum
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, at its maximum


def parameters(shapes: Shapes, dtype: torch.dtype) -> list[Parameter]:
    """Returns parameters with gradients, which stay as they are."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, dtype=dtype, generator=generator)
    return params


def seconds_of(optimizer: torch.optim.Optimizer) -> float:
    """Returns the seconds of a step."""
    begin = time.thread_time()
    optimizer.step()
    return time.thread_time() - begin


def measure(case: Case, rounds: int) -> Result:
    """Runs a case."""
    shapes, dtype = SHAPES[case.params], case.dtype
    params = parameters(shapes, dtype)
    ours = Optimizer(params, case.chain)
    if dtype.is_complex:  # torch has no fused kernel for these; it gets the same numbers as pairs
        shapes, dtype = [(*shape, 2) for shape in shapes], dtype.to_real()
    theirs = case.peer(parameters(shapes, dtype), lr=1e-3, fused=True)
    for optimizer in (ours, theirs):  # the first steps also make the state
        optimizer.step()
        optimizer.step()
    with PeakMemory() as memory:
        ours.step()
    theirs.step()

    pairs: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(pairs) < max(rounds, 2) or time.perf_counter() - begin < SECONDS:
        pairs.append((seconds_of(ours), seconds_of(theirs)))
    our_seconds, their_seconds = zip(*pairs, strict=True)
    our_tenth, their_tenth = (
        statistics.quantiles(seconds, n=10, method="inclusive")[0]
        for seconds in (our_seconds, their_seconds)
    )
    return Result(
        milliseconds=statistics.median(our_seconds) * 1e3,
        torch_milliseconds=statistics.median(their_seconds) * 1e3,
        ratio=statistics.median(a / b for a, b in pairs),
        ratio_of_10th_percentiles=our_tenth / their_tenth,
        extra_memory=memory.peak / sum(param.nbytes for param in params),
        rounds=len(pairs),
    )


def number(value: float, goal: float | None) -> Text:
    """Returns the number with two digits after the point, red if that is above the goal."""
    missed = goal is not None and round(value, 2) > goal
    return Text(f"{value:.2f}", style="red" if missed else "")


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="at least; small cases take more")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    console = Console()
    console.print(f"torch {torch.__version__}, one thread, load {os.getloadavg()}")
    table = Table(title="Steps of chains, relative to torch's fused Adam or AdamW")
    table.add_column("chain", overflow="fold")
    for heading in ("ms", "/ torch", "of p10", "goal", "memory", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    chosen = [case for case in CASES if arguments.only in case.name]
    written = []
    with Live(table, console=console):  # shows each row as soon as it is measured
        for title, cases in itertools.groupby(chosen, key=lambda case: case.title):
            table.add_section()
            table.add_row(Text(title, style="bold"))
            for case in cases:
                result, goal = measure(case, arguments.rounds), case.time_goal
                table.add_row(
                    Text(case.chain),
                    f"{result.milliseconds:.2f}",
                    number(result.ratio, goal),
                    number(result.ratio_of_10th_percentiles, goal),
                    "-" if goal is None else f"{goal:g}",
                    number(result.extra_memory, case.memory_goal),
                    f"{case.memory_goal:g}",
                )
                goals = {"time_goal": goal, "memory_goal": case.memory_goal}
                written.append({"name": case.name, **vars(result), **goals})
    console.print()  # ends the table's last line, which Live leaves open outside a terminal
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
