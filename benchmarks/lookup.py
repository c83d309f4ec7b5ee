"""Times importing projcore and looking one name up, with torch imported already and 15 plugins.

Run it by ``python benchmarks/lookup.py``; the aim is less than 60 ms.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGINS = 8  # beside our seven
RUNS = 15

HOOKS = """
from projcore.plugin import hookimpl

PROJCORE_API = 1


@hookimpl
def projcore_register_projections(register):
    for i in range(5):
        register(f"made{number}_{{i}}", "nowhere:Nothing", summary="Is looked up.")
"""

SCRIPT = """
import time
import torch

start, cpu = time.perf_counter(), time.process_time()
import projcore.registry

projcore.registry.get("projection", "made3_2")
print(time.perf_counter() - start, time.process_time() - cpu, len(projcore.registry.plugins()))
"""


def make_plugin(folder: Path, number: int) -> None:
    """Writes an installed distribution with five components."""
    package = folder / f"made_{number}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_plugin.py").write_text(HOOKS.format(number=number))
    info = folder / f"made_{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-{number}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[projcore]\nmade{number} = made_{number}._plugin\n")


def main() -> None:
    """Prints the median time of fresh processes."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(PLUGINS):
            make_plugin(Path(name), number)
        # With compiled files, as where packages are installed.
        env = {**os.environ, "PYTHONPATH": name, "PYTHONPYCACHEPREFIX": f"{name}/compiled"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        lines = [
            subprocess.run(
                [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
            ).stdout.split()
            for _ in range(RUNS + 1)
        ][1:]  # the first writes the compiled files
    for i, what in enumerate(("wall", "CPU")):
        times = sorted(1000 * float(line[i]) for line in lines)
        print(f"{what}: median {statistics.median(times):.0f} ms, least {times[0]:.0f} ms")
    print(f"{lines[0][2]} plugins found, {RUNS} runs")


if __name__ == "__main__":
    main()
