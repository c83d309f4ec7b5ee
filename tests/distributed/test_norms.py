"""Norms over sharded parameters are those of the whole ones, by one collective for all tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long

# Collectives of a step: of adafactor, norms of columns, then those of updates and parameters.
COUNTS = {
    "clip value": 0,
    "centralize": 0,
    "adam mini rows": 0,
    "adafactor": 2,
    "adafactor alone": 2,
}
COLUMNS = COUNTS | {"adam mini rows": 1, "centralize": 1}
LAYOUTS = {
    "rows": COUNTS,
    "columns": COLUMNS,
    "hybrid": COUNTS,
    "grid": COLUMNS,
    "grid of some": COLUMNS,
}


@pytest.fixture(scope="module", params=[2, 3, 4])
def results(request: pytest.FixtureRequest, launch: Any) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    found: list[dict[str, Any]] = launch("norms_worker.py", request.param)
    return found


def check_equal(results: list[Any], expected: list[torch.Tensor], what: str) -> None:
    """Checks that processes agree bitwise, and with one process up to the order of sums."""
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0, msg=what)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14, msg=what)


def test_sharded_as_whole(results: list[dict[str, Any]]) -> None:
    for layout in results[0].keys() - {"alone", "special", "nan", "kept"}:
        for chain, expected in results[0]["alone"].items():
            check_equal([r[layout][chain][0] for r in results], expected, f"{layout}: {chain}")


def test_collectives_of_a_step(results: list[dict[str, Any]]) -> None:
    for result in results:
        for layout in result.keys() & LAYOUTS:
            for chain, (_, count) in result[layout].items():
                assert count == LAYOUTS[layout].get(chain, 1), (layout, chain)


def test_no_process_keeps_more_than_its_share(results: list[dict[str, Any]]) -> None:
    """Means of rows and of columns are sharded, too, whatever shards the matrix."""
    for result in results:
        alone = result["kept"]["alone"]
        for layout, kept in result["kept"].items():
            share = {"alone": 1, "hybrid": 2, "grid of some": 2}.get(layout, len(results))
            assert 0 < kept <= 1.1 * alone / share, layout


def test_mixed_kinds_and_ways(results: list[dict[str, Any]]) -> None:
    """Sharded parameters of two dtypes, or beside whole ones; a compiled step; a checked one."""
    for name in results[0].get("special", {}):
        expected, _ = results[0]["special"][name]["alone"]
        found = [result["special"][name]["sharded"] for result in results]
        assert {count for _, count in found} == {1}, name
        for params, _ in found:
            torch.testing.assert_close(params, found[0][0], rtol=0, atol=0)
            for one, other in zip(params, expected, strict=True):
                exact = {"rtol": 1e-12, "atol": 1e-14} if name != "mixed" else {}
                torch.testing.assert_close(one, other, **exact, msg=name)


def test_all_processes_see_a_nan(results: list[dict[str, Any]]) -> None:
    """A backend's maximum of NaN and a number may be the number."""
    for result in results:
        if "nan" in result:
            assert "Inf or NaN" in result["nan"]
