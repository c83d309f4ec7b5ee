"""Matrix methods on sharded parameters: owners step them as one process would."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("gather_worker.py")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no distributed part"
    ),
]

# How far rounding takes it in 20 steps; one recipe amplifies it, see below.
EXACT = 1e-12
TIMEOUT = 300  # seconds


def launch(task: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """Has processes do something; returns what each wrote."""
    lines = [
        [sys.executable, str(WORKER), task, str(rank), str(size), str(folder)]
        for rank in range(size)
    ]
    with ExitStack() as stack:
        processes = []
        for line in lines:
            process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, errors
    files = [folder / f"{task}-{size}-{rank}.pt" for rank in range(size)]
    return [torch.load(file, weights_only=True) for file in files]


def agree(results: list[dict[str, Any]], key: str) -> None:
    """Checks that all processes have bitwise the same parameters."""
    first, *others = (result[key] for result in results)
    for other in others:
        assert all(map(torch.equal, first, other)), key


@pytest.mark.parametrize(
    ("task", "size"),
    [
        ("recipes_under_fsdp", 2),
        ("recipes_unevenly", 3),
        ("recipes_on_meshes", 4),
        ("tensor_parallel", 2),
    ],
)
def test_recipes_train_as_in_one_process(task: str, size: int, tmp_path: Path) -> None:
    results = launch(task, size, tmp_path)
    for name in results[0]:
        agree([result[name] for result in results], "params")
        for result in results:
            # SOAP's bases of nearly equal eigenvalues turn by any rounding.
            found = result[name]
            assert found["difference"] <= max(EXACT, 100 * found["noise"]), name
            assert found["noise"] < EXACT or name == "soap"
            assert found["resumed"], name


def test_state_is_kept_once(tmp_path: Path) -> None:
    results = launch("balance", 2, tmp_path)
    for name in results[0]:
        for result in results:
            kept, alone, on_paper = result[name]
            assert kept == on_paper, name
            # Adafactor's means over rows are whole in each process.
            assert kept <= (1.2 if name == "flora" else 1.1) * alone / 2, name


def test_switches_and_chains(tmp_path: Path) -> None:
    results = launch("switches", 2, tmp_path)
    for result in results:
        for name, found in result.items():
            assert not isinstance(found, str), found
            assert found < EXACT, name


def test_checkpoints_go_on_with_other_processes(tmp_path: Path) -> None:
    expected = launch("save", 2, tmp_path)[0]
    for size in (1, 2, 3):
        for result in launch("load", size, tmp_path):
            for key, found in result.items():
                if key.endswith("flat"):
                    assert found, key
                    continue
                for one, other in zip(expected[key.partition(",")[0]], found, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=key)


def test_a_step_has_two_collectives(tmp_path: Path) -> None:
    for result in launch("counts", 2, tmp_path):
        for name, found in result.items():
            kinds, counts = zip(*found["found"], strict=True)
            assert kinds == ("all_to_all_single",) * (3 if name == "muon" else 2), name
            assert [(sum(counts[:-1]), counts[-1])] == found["told"], name
            assert found["on paper"] == [found["state"], sum(found["told"][0])], name
            for count in found["told"][0]:
                assert f"{count:,}" in found["text"], name


def test_owners_stay_when_others_join(tmp_path: Path) -> None:
    for result in launch("owners", 2, tmp_path):
        assert result["difference"] < EXACT


def test_mixed_precision(tmp_path: Path) -> None:
    results = launch("precision", 2, tmp_path)
    for name in ("galore_adamw", "muon_adamw"):
        assert all(results[0][name])
        agree(results, f"{name} params")


def test_others_are_told_which_process_failed(tmp_path: Path) -> None:
    first, second = launch("failure", 2, tmp_path)
    assert second["said"] == "RuntimeError: out of luck"
    assert first["said"].startswith("StepError")
    assert "rank 1 (out of luck)" in first["said"]
    assert first["same"]
    assert second["same"]
