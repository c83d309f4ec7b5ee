"""How the processes of these tests meet, and how they end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch


def run(task: Callable[..., object], seconds: float = 120) -> None:
    """Joins the other processes and writes the results of a task to a file.

    The interpreter isn't finalized. torch's gloo threads may outlive ``destroy_process_group``,
    since FSDP2 and reference cycles hold groups, and a thread that then needs the interpreter
    aborts the process: "terminate called without an active exception".

    Args:
        task: Is given the rank, the number of processes, and further arguments of the script.
        seconds: How long a collective may take.
    """
    rank, size, place, file, *others = sys.argv[1:]
    torch.set_num_threads(1)
    meet("begin")
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{place}",
        rank=int(rank),
        world_size=int(size),
        timeout=timedelta(seconds=seconds),
    )
    torch.save(task(int(rank), int(size), *others), file)
    sys.stderr.flush()
    os._exit(0)


def meet(name: str) -> None:
    """Waits until all processes have come to a point, however long they take to get there.

    A group with a short timeout is made right after it, so that a slow start is no failure.
    """
    rank, size, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    marks = [Path(f"{place}-{name}-{each}") for each in range(size)]
    marks[rank].touch()
    while not all(mark.exists() for mark in marks):
        time.sleep(0.01)
