"""Parameters sharded over two processes by `fully_shard` train as whole ones, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def results(launch: Any) -> list[dict[str, Any]]:
    """What each of two processes found."""
    found: list[dict[str, Any]] = launch("sharded_worker.py", 2)
    return found


@pytest.mark.parametrize("how", ["sharded", "resumed"])
def test_shards_train_as_the_whole(results: list[dict[str, Any]], how: str) -> None:
    for result in results:  # sums are taken in another order
        torch.testing.assert_close(result[how], result["alone"], rtol=1e-10, atol=1e-13)


def test_shards_have_their_step_in_the_backward_pass(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, found in result["in backward"].items():
            assert found.pop("grads") == 0
            torch.testing.assert_close(found, result["alone"][name], rtol=1e-10, atol=1e-13)


def test_shards_go_beside_whole_parameters(results: list[dict[str, Any]]) -> None:
    for result in results:
        sharded, plain = result["beside plain"]
        torch.testing.assert_close(sharded, plain, rtol=1e-12, atol=0)


def test_one_plane_for_all_parameters(results: list[dict[str, Any]]) -> None:
    """Gradients and parameters go in by one collective each."""
    for result in results:
        for kind in ("fastfood", "dense", "srht"):
            found, expected = (result["planes"][f"{kind} {how}"] for how in ("sharded", "alone"))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, msg=kind)
            assert result["planes"][f"{kind} sharded count"] == 2
            assert all(map(torch.equal, found, results[0]["planes"][f"{kind} sharded"]))


def test_what_needs_parameters_whole_is_refused(results: list[dict[str, Any]]) -> None:
    culprits = {
        "in a route": "low_rank([clip_norm(1.0)], rank=2)",
        "a vector": "vector([clip_norm(0.1)])",
    }
    for result in results:
        assert result["refused"].keys() == culprits.keys()
        for name, text in result["refused"].items():
            expected = "Parameter 0, of shape (4, 4), is sharded over processes, and "
            assert text.startswith(expected + culprits[name]), name


def test_all_processes_see_what_one_of_them_has(results: list[dict[str, Any]]) -> None:
    """Otherwise one would refuse a step that the others take."""
    for result in results:
        *found, text = result["nonfinite"]
        assert found == [None, 1, 2]
        assert "parameter 'bias', of shape (4,), has Inf or NaN" in text
