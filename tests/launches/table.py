"""What a step of each chain and recipe asks of a CUDA device: the table, and how it is made.

``table.json`` is kept in the repository. After a change that makes a number smaller, or a good
reason for one to grow, write it again, and let the change show in the diff::

    .venv/bin/python -m tests.launches.table

With names of cases, nothing is written, but what was counted is told, with the lines of code that
cost a sync or a copy::

    .venv/bin/python -m tests.launches.table soap "adamw(); lr"
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import Parameter

from benchmarks.cases import CASES, Case
from tests.launches.counting import Counting
from tests.launches.fake_cuda import fake_cuda

Row = dict[str, dict[str, float]]
TABLE = Path(__file__).with_name("table.json")
PERIOD = 3


def measure(case: Case) -> dict[str, Counting]:
    """Counts an ordinary step, and one with a refresh where there are refreshes.

    These are the cheapest and the dearest of the second period: by then all state is there.
    """
    with fake_cuda():
        named = [
            (name, Parameter(torch.empty(shape, dtype=case.dtype, device="cuda:0")))
            for name, shape in case.model.shapes().items()
        ]
        optimizer = case.make(named, case.model.hidden, PERIOD)
        steps = []
        for _ in range(2 * PERIOD if case.periodic else 2):
            for _, param in named:
                param.grad = torch.empty_like(param)
            with Counting() as counting:
                optimizer.step()
            steps.append(counting)
    if not case.periodic:
        return {"ordinary": steps[-1]}
    ordinary, *_, refresh = sorted(steps[PERIOD:], key=lambda each: each.counts)
    return {"ordinary": ordinary, "refresh": refresh}


def row(case: Case, steps: dict[str, Counting]) -> Row:
    """Returns the numbers of a case; the peak is relative to the bytes of the parameters."""
    size = sum(torch.Size(shape).numel() for shape in case.model.shapes().values())
    result: Row = {}
    for step, counting in steps.items():
        counts = counting.counts
        peak = round(counts.peak / (size * case.dtype.itemsize), 2)
        result[step] = {**counts._asdict(), "peak": peak}
    return result


def table() -> dict[str, Row]:
    """Returns the table as it was written."""
    written: dict[str, Row] = json.loads(TABLE.read_text(encoding="utf-8"))
    return written


def write(rows: dict[str, Row]) -> None:
    """Writes the table, a line for each step."""
    texts = []
    for name, steps in rows.items():
        lines = [f"  {json.dumps(step)}: {json.dumps(numbers)}" for step, numbers in steps.items()]
        texts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    TABLE.write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def places(counting: Counting) -> str:
    """Says where the syncs and copies of a step come from, and what was launched."""
    lines = [f"  sync x{count} {place}" for place, count in counting.syncs.most_common()]
    lines += [f"  copy x{count} {place}" for place, count in counting.copies.most_common()]
    launches = ", ".join(f"{name} x{count}" for name, count in counting.launches.most_common())
    return "\n".join([*lines, f"  launches: {launches}"])


def main(names: Sequence[str]) -> None:
    """Writes the table, or tells of some cases."""
    for name in names:
        steps = measure(CASES[name])
        for step, numbers in row(CASES[name], steps).items():
            print(f"{name}, {step}: {numbers}\n{places(steps[step])}")
    if not names:
        write({name: row(case, measure(case)) for name, case in CASES.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
