"""Matrix methods on sharded parameters: owners step them as one process would."""

from __future__ import annotations

import re
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

# How far rounding takes it in 20 steps; some recipes amplify it, to what is measured beside them.
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
        ("recipes_under_fsdp", 3),
        ("recipes_in_tensor_parallel", 2),
        ("recipes_in_replicas", 4),
        ("recipes_in_two_dimensions", 4),
    ],
)
def test_recipes_train_as_in_one_process(task: str, size: int, tasks: Tasks) -> None:
    results = tasks(task, size)
    for name in results[0]:
        agree([result[name] for result in results], "params")
        for result in results:
            found = result[name]
            assert found["noise"] < 1e-10, name
            assert found["difference"] < max(EXACT, 10 * found["noise"]), name


def test_every_recipe_is_tried(tasks: Tasks) -> None:
    (result,) = tasks("all_recipes", 1)
    assert result["tried"] == result["registered"]


def test_resumed_as_never_stopped(tasks: Tasks) -> None:
    for result in tasks("resumed", 2):
        for name, same in result.items():
            assert same, name


def test_mixed_precision(tasks: Tasks) -> None:
    """Processes compute gradients in bfloat16, each of its share, and so does the one process."""
    results = tasks("precision", 2)
    for name in results[0]:
        agree([result[name] for result in results], "params")
        for result in results:
            assert result[name]["difference"] < EXACT, name


@pytest.mark.parametrize("size", [2, 3])
def test_no_process_keeps_more_than_its_share(size: int, tasks: Tasks) -> None:
    for result in tasks("balance", size):
        for name, (kept, alone, on_paper) in result.items():
            assert kept == on_paper, name
            # The numbers that make a plane are the same in all processes.
            assert kept <= 1.1 * alone / size or name == "intrinsic_dimension", name


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


# Bytes that are summed over processes, in float64: two norms for each of three matrices; a mean for
# each of 78 columns, then norms of four matrices, and of four vectors; a norm for each of three
# matrices; 20 numbers of a plane.
SUMS = {
    "adam_h": [48],
    "flora": [624, 32, 32],
    "galore_adafactor": [32],
    "intrinsic_dimension": [160],
    "muon_h": [48],
    "racs_adamw": [24],
    "soap_h": [48],
}
# What is between two modules runs on shards, or they run on other parameters.
VISITS = {"intrinsic_dimension": 0, "muon_h": 2, "scale_adamw": 2, "soap_h": 2}
READS_PARAMS = {"adam_h", "muon_h", "soap_h", "muon"}


def test_collectives_of_a_step(tasks: Tasks) -> None:
    """Nothing is gathered in all processes; `describe` and `sharding` tell what owners are sent."""
    for result in tasks("counts", 2):
        for name, found in result.items():
            sums = [count for kind, count in found["found"] if kind == "all_reduce"]
            counts = [count for kind, count in found["found"] if kind == "all_to_all_single"]
            assert sorted(sums, reverse=True) == SUMS.get(name, []), name
            assert found["every"] == len(found["found"]) == len(sums) + len(counts), name
            visits = VISITS.get(name, 1)
            assert len(found["told"]) == visits, name
            assert len(counts) == 2 * visits + (name in READS_PARAMS), name
            assert found["groups"] == 0, name  # they would outlive `destroy_process_group`
            # In two processes, each sends as many bytes as the vector has.
            assert found["on paper"] == [found["state"], sum(counts + sums), sums], name
            assert f"this process sends {sum(counts + sums):,} bytes:" in found["text"], name
            told = re.findall(r"\(a sum of ([\d,]+)\)", found["text"])
            assert [int(each.replace(",", "")) for each in told] == sums, name
            assert sum(counts) == sum(map(sum, found["told"])), name
            table, *_ = found["text"].split("\n\n")
            assert len(re.findall(r"  ([01] of 2|all, in parts)  ", table)) == 8, name
            for count in (each for told in found["told"] for each in told):
                assert f"{count:,}" in found["text"], name


def test_owners_stay_when_others_join(tasks: Tasks) -> None:
    for result in tasks("owners", 2):
        assert result["difference"] < EXACT
