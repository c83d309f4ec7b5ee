"""The example of FSDP2 trains, and goes on with another number of processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="`make ecosystem` has it")

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples/fsdp2/train.py"


def run(processes: int, *arguments: str) -> float:
    """Runs the example; returns the loss that it prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(SCRIPT), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"loss (\S+) after \d+ steps in (\d) processes", done.stdout)
    assert found is not None, done.stdout
    assert int(found[2]) == processes
    return float(found[1])


@pytest.mark.parametrize(
    "spec", ["galore_adamw(rank=16, lr=3e-3, period=10)", "muon_adamw(lr=3e-3)"]
)
def test_ecosystem_resumes_with_other_processes(spec: str, tmp_path: Path) -> None:
    options = ("--optimizer", spec)
    folder = str(tmp_path / "checkpoint")
    begun = run(2, *options, "--steps", "12", "--save", folder)
    resumed = run(3, *options, "--steps", "24", "--resume", folder)
    assert resumed < begun
    assert resumed == pytest.approx(run(2, *options, "--steps", "24"), rel=1e-3)
