"""Modules that evaluate the loss take the same step in all processes, that of the joint batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest, launch: Any) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    found: list[dict[str, Any]] = launch("closures_worker.py", request.param)
    return found


@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_processes_step_as_one(results: list[dict[str, Any]], way: str) -> None:
    for name, first in results[0][way].items():
        expected = results[0]["alone"][name]
        assert first["evaluations"] == expected["evaluations"], name
        for result in results:
            found = result[way][name]
            assert found["evaluations"] == first["evaluations"], name
            assert all(map(torch.equal, found["params"], first["params"])), name
            for one, other in zip(found["params"], expected["params"], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


def test_processes_do_not_drift_apart(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert "reads the loss in one of" in result["refused"]


def test_resumed_as_never_stopped(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, found in result["resumed"].items():
            assert all(map(torch.equal, found["params"], result["sharded"][name]["params"])), name


def test_one_sum_for_each_evaluation_and_inner_product(results: list[dict[str, Any]]) -> None:
    """What else FSDP2 sends are parameters and gradients, by other collectives."""
    for result in results:
        assert result["sharded"]["spsa"]["sums"] == 1 + 2 * 2
        assert result["sharded"]["sam"]["sums"] == 1 + 1 + 1
