"""Matrix methods on sharded parameters: owners step them as one process would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Tasks = Callable[..., list[dict[str, Any]]]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no distributed part"
    ),
]

# How far rounding takes it in 20 steps; one recipe amplifies it, see below.
EXACT = 1e-12


@pytest.fixture
def tasks(launch: Any, tmp_path: Path) -> Tasks:
    """Has so many processes do something; returns what each found. They share a folder."""
    return lambda task, size: launch("gather_worker.py", size, task, tmp_path)


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
def test_recipes_train_as_in_one_process(task: str, size: int, tasks: Tasks) -> None:
    results = tasks(task, size)
    for name in results[0]:
        agree([result[name] for result in results], "params")
        for result in results:
            # SOAP's bases of nearly equal eigenvalues turn by any rounding.
            found = result[name]
            assert found["difference"] <= max(EXACT, 100 * found["noise"]), name
            assert found["noise"] < EXACT or name == "soap"
            assert found["resumed"], name


def test_state_is_kept_once(tasks: Tasks) -> None:
    results = tasks("balance", 2)
    for name in results[0]:
        for result in results:
            kept, alone, on_paper = result[name]
            assert kept == on_paper, name
            # Adafactor's means over rows are whole in each process.
            assert kept <= (1.2 if name == "flora" else 1.1) * alone / 2, name


def test_switches_and_chains(tasks: Tasks) -> None:
    results = tasks("switches", 2)
    for result in results:
        for name, found in result.items():
            assert not isinstance(found, str), found
            assert found < EXACT, name


def test_checkpoints_go_on_with_other_processes(tasks: Tasks) -> None:
    expected = tasks("save", 2)[0]
    for size in (1, 2, 3):
        for result in tasks("load", size):
            for key, found in result.items():
                if key.endswith("flat"):
                    assert found, key
                    continue
                for one, other in zip(expected[key.partition(",")[0]], found, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=key)


def test_a_step_has_two_collectives(tasks: Tasks) -> None:
    for result in tasks("counts", 2):
        for name, found in result.items():
            kinds, counts = zip(*found["found"], strict=True)
            assert kinds == ("all_to_all_single",) * (3 if name == "muon" else 2), name
            assert [(sum(counts[:-1]), counts[-1])] == found["told"], name
            assert found["groups"] == 0, name  # they would outlive `destroy_process_group`
            assert found["on paper"] == [found["state"], sum(found["told"][0])], name
            for count in found["told"][0]:
                assert f"{count:,}" in found["text"], name


def test_owners_stay_when_others_join(tasks: Tasks) -> None:
    for result in tasks("owners", 2):
        assert result["difference"] < EXACT


def test_mixed_precision(tasks: Tasks) -> None:
    results = tasks("precision", 2)
    for name in ("galore_adamw", "muon_adamw"):
        assert all(results[0][name])
        agree(results, f"{name} params")
