"""Sharded state goes on in another number of processes, and whole state in sharded parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def saved(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with checkpoints of two processes and of one, and what these went on to."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, launch("checkpoints_worker.py", 2, folder, "save")[0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_goes_on_in_other_processes(launch: Any, saved: Any, size: int) -> None:
    folder, expected = saved
    for result in launch("checkpoints_worker.py", size, folder, "load"):
        for name, found in result.items():
            for how, params in found.items():
                same = size == 2 and how == "sharded"
                exact = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-12, "atol": 1e-14}
                torch.testing.assert_close(params, expected[name][how], **exact, msg=name)


def test_goes_on_in_another_kind_of_model(launch: Any, tmp_path: Path) -> None:
    """From FSDP2 to DistributedDataParallel and one process, and back, in every form of torch's."""
    for result in launch("crossing_worker.py", 2, tmp_path):
        for name, (_, expected), *others in ((n, *found.items()) for n, found in result.items()):
            assert len(others) == 5 * 4, name
            for key, found in others:
                for one, other in zip(found, expected, strict=True):
                    scale = float(other.abs().max())
                    torch.testing.assert_close(
                        one, other, rtol=0, atol=1e-12 * scale, msg=f"{name}: {key}"
                    )
