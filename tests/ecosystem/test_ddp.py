"""Two processes under DistributedDataParallel train as one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long

WORKER = Path(__file__).with_name("ddp_worker.py")


def launch(size: int, folder: Path) -> list[dict[str, Any]]:
    """Runs the worker in `size` processes; returns what each of them wrote."""
    files = [folder / f"{rank}.pt" for rank in range(size)]
    commands = [
        [sys.executable, WORKER, str(rank), str(size), folder / "meet", file]
        for rank, file in enumerate(files)
    ]
    processes = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in commands]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed part")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    results = launch(2, tmp_path)
    alone = results[0]["alone"]
    for how in ("copied", "viewed"):  # buckets of gradients
        both = [result[how] for result in results]
        for each in both:
            torch.testing.assert_close(each["params"], both[0]["params"], rtol=0, atol=0)
            # Averages over processes are sums in another order.
            torch.testing.assert_close(each["params"], alone["params"], rtol=1e-12, atol=1e-13)
            for mine, theirs in zip(each["memory"], alone["memory"], strict=True):
                torch.testing.assert_close(mine["state"], theirs["state"], rtol=1e-9, atol=1e-15)
        means = [sum(losses) / 2 for losses in zip(*(each["losses"] for each in both), strict=True)]
        torch.testing.assert_close(means, alone["losses"], rtol=1e-12, atol=0)
        assert both[0]["losses"] != both[1]["losses"]
