"""If one process fails, the others do not wait longer than they must, and say which it was."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.long


def test_others_are_told_which_process_failed(launch: Any) -> None:
    *others, last = launch("failing_worker.py", 3)
    for name, found in last.items():
        assert found["said"] == "RuntimeError: out of luck", name
        assert found["same"] or name == "in_backward", name
        for other in others:
            assert other[name]["said"].startswith("StepError: Another process has failed"), name
            assert "rank 2 (out of luck)" in other[name]["said"], name
            assert other[name]["same"] or name == "in_backward", name
