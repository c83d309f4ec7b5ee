"""Times steps of chains and recipes on a GPU against torch's fused AdamW, and counts their memory.

Each optimizer of ``benchmarks/cases.py`` and ``torch.optim.AdamW(fused=True)`` step in turn on the
same parameters, those of LLaMA-7B with two layers, so that a device that slows down slows both
alike. A ratio is the median of the ratios of the rounds. Times are taken by events of the device,
from before a step to after its last kernel, so the time in which the device waits for the host is
in them. For each case there are

* an ordinary step, and the memory that it takes beside parameters, gradients and state, relative to
  the parameters;
* a step with a refresh, and what the refresh adds to it as a share of the time of
  `torch.linalg.svd` of the same matrices, one of each shape being timed;
* a step under ``compile=True``, relative to the eager one; modules that cannot be compiled run
  eagerly in both.

Writes ``gpu.json`` and ``gpu.md``, anew after each case. Run it with ``make bench-gpu``, or by
hand; ``--device cpu --small`` shows on any machine that all cases run, with times that say little
of large models::

    python -m benchmarks.gpu --rounds 30 --only galore
    python -m benchmarks.gpu --device cpu --small
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn import Parameter

from benchmarks.cases import CASES, SMALL, Case, Named
from projcore import Optimizer
from projcore_lab.llama import Llama
from projcore_lab.memory import PeakMemory

Run = Callable[[], object]
NEVER = 10**9  # steps until the next refresh
WARM_UP = 3
# Heading and field of a result.
COLUMNS = {
    "ms": "milliseconds",
    "/ AdamW": "ratio",
    "memory": "memory",
    "refresh ms": "refresh_milliseconds",
    "refresh / SVD": "refresh_to_svd",
    "compiled / eager": "compiled_to_eager",
}


@dataclass(frozen=True)
class Result:
    """What was measured of a case; None where it does not apply.

    Attributes:
        milliseconds: Of an ordinary step.
        adamw_milliseconds: Of a step of torch's fused AdamW on the same parameters.
        ratio: Of the two, by rounds.
        memory: Bytes that an ordinary step takes for itself, relative to the parameters.
        adamw_memory: The same of AdamW.
        refresh_milliseconds: Of a step with a refresh.
        refresh_to_svd: What a refresh adds to a step, relative to SVDs of the same matrices.
        compiled_to_eager: A compiled step relative to an eager one, by rounds.
        note: Why something is missing.
    """

    milliseconds: float | None = None
    adamw_milliseconds: float | None = None
    ratio: float | None = None
    memory: float | None = None
    adamw_memory: float | None = None
    refresh_milliseconds: float | None = None
    refresh_to_svd: float | None = None
    compiled_to_eager: float | None = None
    note: str = ""


class Meter:
    """Measures what is run on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def milliseconds(self, run: Run) -> float:
        """Returns how long it takes until all its work is done."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e3
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

    def peak(self, run: Run) -> int:
        """Returns the most bytes that are alive at once beside those that are when it begins."""
        if self.device.type != "cuda":
            with PeakMemory() as memory:
                run()
            return memory.peak
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def in_turn(self, runs: Sequence[Run], rounds: int) -> list[list[float]]:
        """Returns the milliseconds of each in each round; rounds before them warm up."""
        for _ in range(WARM_UP):
            for run in runs:
                run()
        table = [[self.milliseconds(run) for run in runs] for _ in range(rounds)]
        return [list(column) for column in zip(*table, strict=True)]


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def parameters(model: Llama, dtype: torch.dtype, device: torch.device) -> Named:
    """Returns parameters with their names and with gradients, which stay as they are."""
    torch.manual_seed(0)
    named = []
    for name, shape in model.shapes().items():
        param = Parameter(torch.randn(shape, dtype=dtype, device=device))
        param.grad = torch.randn_like(param)
        named.append((name, param))
    return named


def adamw(named: Named) -> torch.optim.Optimizer:
    """Returns torch's fused AdamW for the same numbers, complex ones as pairs."""
    pairs = []
    for _, param in named:
        if param.is_complex():  # for which torch has no fused kernel
            assert param.grad is not None
            pair = Parameter(torch.view_as_real(param.detach()))
            pair.grad = torch.view_as_real(param.grad)
            pairs.append(pair)
        else:
            pairs.append(param)
    return torch.optim.AdamW(pairs, lr=1e-3, fused=True)


def compiled(optimizer: Optimizer) -> Optimizer | None:
    """Returns the same optimizer with ``compile=True``; None if it runs in buckets."""
    if optimizer.bucket_bytes is not None:
        return None
    defaults = optimizer.defaults
    groups = [
        {
            key: value
            for key, value in group.items()
            if key not in defaults or value != defaults[key]
        }
        for group in optimizer.param_groups
    ]
    return Optimizer(groups, optimizer.module, compile=True)


class SVDs:
    """The time of the singular value decompositions of all matrices between two layers."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._known: dict[tuple[torch.Size, torch.dtype], float] = {}

    def milliseconds(self, named: Named) -> float:
        """Returns the sum over the matrices; one of each shape is timed, and that once."""
        matrices: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        counts: Counter[tuple[torch.Size, torch.dtype]] = Counter()
        for name, param in named:
            if param.ndim == 2 and ".layers." in name:
                key = param.shape, param.dtype
                counts[key] += 1
                matrices[key] = param.detach()
        for key in matrices.keys() - self._known.keys():
            self._known[key] = self._meter.milliseconds(
                lambda matrix=matrices[key]: torch.linalg.svd(matrix, full_matrices=False)
            )
        return sum(self._known[key] * count for key, count in counts.items())


def measure(
    case: Case, model: Llama, meter: Meter, svds: SVDs, rounds: int, refreshes: int, compile: bool
) -> Result:
    """Runs a case."""
    named = parameters(model, case.dtype, meter.device)
    size = sum(param.nbytes for _, param in named)
    theirs = adamw(named)
    ours = case.make(named, model.hidden, NEVER)
    for optimizer in (ours, theirs):  # the first steps also make the state
        for _ in range(2):
            optimizer.step()
    memory, adamw_memory = (meter.peak(each.step) / size for each in (ours, theirs))
    our_times, their_times = meter.in_turn([ours.step, theirs.step], rounds)
    ordinary = statistics.median(our_times)

    compiled_to_eager = None
    if compile and (graph := compiled(ours)):
        compiled_to_eager = median_ratio(*meter.in_turn([graph.step, ours.step], rounds))
        del graph
    refresh = refresh_to_svd = None
    if case.periodic:
        del ours
        often = case.make(named, model.hidden, 1)
        often.step()
        refresh = statistics.median(meter.milliseconds(often.step) for _ in range(refreshes))
        refresh_to_svd = (refresh - ordinary) / svds.milliseconds(named)
    return Result(
        milliseconds=ordinary,
        adamw_milliseconds=statistics.median(their_times),
        ratio=median_ratio(our_times, their_times),
        memory=memory,
        adamw_memory=adamw_memory,
        refresh_milliseconds=refresh,
        refresh_to_svd=refresh_to_svd,
        compiled_to_eager=compiled_to_eager,
    )


def cells(result: Result) -> list[str]:
    """Returns the numbers of a case as text."""
    values = [getattr(result, field) for field in COLUMNS.values()]
    return [f"{value:.2f}" if value is not None else "-" for value in values]


def markdown(title: str, results: dict[str, Result]) -> str:
    """Returns the results as a table."""
    lines = [
        f"| {' | '.join(('case', *COLUMNS))} |",
        f"| --- |{' ---: |' * len(COLUMNS)}",
        *(f"| `{name}` | {' | '.join(cells(result))} |" for name, result in results.items()),
    ]
    notes = [f"`{name}`: {result.note}" for name, result in results.items() if result.note]
    return "\n".join([title, "", *lines, "", *notes]).rstrip() + "\n"


def write(folder: Path, facts: dict[str, object], results: dict[str, Result]) -> None:
    """Writes what was measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {name: asdict(result) for name, result in results.items()}
    text = json.dumps({**facts, "cases": cases}, indent=1)
    (folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
    title = ", ".join(f"{name} {fact}" for name, fact in facts.items())
    (folder / "gpu.md").write_text(markdown(title, results), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the cases."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device, help="default: cuda")
    parser.add_argument("--small", action="store_true", help="a model of a few thousand numbers")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--refreshes", type=int, default=3, help="how many are timed")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled steps")
    parser.add_argument("--output", type=Path, default=Path("bench-gpu"), metavar="FOLDER")
    arguments = parser.parse_args(argv)
    device, console = arguments.device, Console()
    if device.type == "cuda" and not torch.cuda.is_available():
        console.print("There is no CUDA device here, so nothing was measured.")
        return
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "model": "small" if arguments.small else "LLaMA-7B, 2 layers",
        "rounds": arguments.rounds,
    }
    table = Table(title="Steps, relative to torch's fused AdamW")
    table.add_column("case", overflow="fold")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")
    meter = Meter(device)
    svds = SVDs(meter)
    rounds, refreshes, compile = arguments.rounds, arguments.refreshes, not arguments.no_compile
    results: dict[str, Result] = {}
    console.print(*facts.values(), sep=", ")
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, Live(table, console=console):  # shows each row as soon as it is measured
        for name, case in CASES.items():
            if arguments.only not in name:
                continue
            model = SMALL if arguments.small else case.model
            try:
                results[name] = measure(case, model, meter, svds, rounds, refreshes, compile)
            except torch.OutOfMemoryError:
                results[name] = Result(note="takes more memory than the device has")
            table.add_row(Text(name), *cells(results[name]))
            write(arguments.output, facts, results)
    console.print()  # ends the table's last line, which Live leaves open outside a terminal


if __name__ == "__main__":
    main()
