"""Runs a script in several processes, which meet, and returns what each of them found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Launch = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Has processes run a script of this folder; none may take longer than two minutes.

    Its arguments: rank, number of processes, a file to meet at, a file to write to.
    """
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed part")

    def run(script: str, size: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(script.partition(".")[0])
        path = Path(__file__).with_name(script)
        files = [folder / f"{rank}.pt" for rank in range(size)]
        processes = [
            subprocess.Popen(
                [sys.executable, path, str(rank), str(size), folder / "meet", file],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, file in enumerate(files)
        ]
        try:
            for process in processes:
                _, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors
        finally:
            for process in processes:
                process.kill()
        return [torch.load(file, weights_only=True) for file in files]

    return run
