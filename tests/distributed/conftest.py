"""Runs a script in several processes, which meet, and returns what each of them found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

collect_ignore_glob = ["*_worker.py"]  # they are scripts

Launch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Has processes run a script of this folder; none may take longer than five minutes.

    Its arguments: rank, number of processes, a file to meet at, a file to write to, and others.
    """
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed part")

    def run(script: str, size: int, *others: object) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(script.partition(".")[0])
        path = Path(__file__).with_name(script)
        files = [folder / f"{rank}.pt" for rank in range(size)]
        with ExitStack() as stack:
            processes = []
            for rank, file in enumerate(files):
                line = [sys.executable, path, str(rank), str(size), folder / "meet", file]
                line += map(str, others)
                log = stack.enter_context((folder / f"{rank}.log").open("w"))
                process = stack.enter_context(subprocess.Popen(line, stderr=log))
                stack.callback(process.kill)
                processes.append(process)
            for rank, process in enumerate(processes):
                assert process.wait(timeout=300) == 0, (folder / f"{rank}.log").read_text()
        return [torch.load(file, weights_only=True) for file in files]

    return run
