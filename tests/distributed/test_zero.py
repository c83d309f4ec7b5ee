"""ZeroRedundancyOptimizer spreads the state over processes; FSDP1 flattens parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def results(launch: Any) -> list[dict[str, Any]]:
    """What each of two processes found."""
    found: list[dict[str, Any]] = launch("zero_worker.py", 2)
    return found


@pytest.mark.parametrize("how", ["params", "resumed"])
def test_zero_steps_as_one_process(results: list[dict[str, Any]], how: str) -> None:
    for name, expected in results[0]["alone"].items():
        first = results[0]["zero"][name]["params"]
        for result in results:
            found = result["zero"][name][how]
            assert all(map(torch.equal, found, first)), name
            if name != "soap":  # see below
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, msg=name)


def test_zero_steps_bitwise_where_gradients_are_equal(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, expected in result["alone"].items():
            assert all(map(torch.equal, result["equal"][name], expected)), name


def test_soap_differs_as_much_as_by_rounding(results: list[dict[str, Any]]) -> None:
    """Its bases turn by any rounding, and gradients of shares are rounded in another order."""
    for result in results:
        expected = result["alone"]["soap"]
        noise, found = (
            max(float((a - b).abs().max()) for a, b in zip(expected, other, strict=True))
            for other in (result["noisy"], result["zero"]["soap"]["params"])
        )
        assert noise > 1e-6
        assert found < 10 * noise


def test_what_zero_cannot_step_is_refused(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, text in result["recipes"].items():
            assert f"was given {name}" in text
            assert "ZeroRedundancyOptimizer(whole.param_groups, whole.part)" in text
        assert "needs all parameters at once" in result["wide"]
        assert result["narrow"] == "none"
        assert (
            "has 1 parameter groups, and was given a function that makes" in (result["regrouped"])
        )


def test_zero_keeps_state_once(results: list[dict[str, Any]]) -> None:
    for name in results[0]["zero"].keys() - {"named"}:  # which has one number
        assert all(result["zero"][name]["kept"] > 0 for result in results), name


def test_elementwise_modules_run_under_fsdp1(results: list[dict[str, Any]]) -> None:
    for result in results:
        for found in result["flattened"]:
            expected = result["elementwise"]
            for one, other in zip(found, expected, strict=False):
                torch.testing.assert_close(one.reshape(-1)[: other.numel()], other.reshape(-1))


def test_what_is_not_elementwise_is_refused_under_fsdp1(results: list[dict[str, Any]]) -> None:
    for result in results:
        refused = dict(result["refused"])
        assert "Optimizer.part() was asked" in refused.pop("part")
        for name, text in refused.items():
            culprit = name.rpartition(" ")[0]
            assert text.startswith("Parameter 0, of shape ("), name
            assert f"(FSDP1) has flattened, and {culprit} was given" in text
