"""Two processes under DistributedDataParallel train as one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long


def test_two_processes_train_as_one(launch: Any) -> None:
    results = launch("ddp_worker.py", 2)
    alone = results[0]["alone"]
    for how in ("copied", "viewed"):  # buckets of gradients
        both = [result[how] for result in results]
        for each in both:
            torch.testing.assert_close(each["params"], both[0]["params"], rtol=0, atol=0)
            # Averages over processes are sums in another order.
            torch.testing.assert_close(each["params"], alone["params"], rtol=1e-12, atol=1e-13)
            for mine, theirs in zip(each["memory"], alone["memory"], strict=True):
                torch.testing.assert_close(mine["state"], theirs["state"], rtol=1e-9, atol=1e-15)
        means = [sum(losses) / 2 for losses in zip(*(each["losses"] for each in both), strict=True)]
        torch.testing.assert_close(means, alone["losses"], rtol=1e-12, atol=0)
        assert both[0]["losses"] != both[1]["losses"]
