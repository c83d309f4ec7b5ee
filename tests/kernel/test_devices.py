"""What is kept where: counts stay on the CPU, and nothing waits for an accelerator without need."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.engine.passes import split as splitting
from projcore.errors import StepError
from tests.launches.fake_cuda import AVAILABLE, fake_cuda


def saved_on(device: str) -> dict[str, Any]:
    """A state dict as ``torch.load(..., map_location=device)`` returns it."""
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Optimizer([parameter], "adam()", "lr(0.1)")
    parameter.grad = torch.ones(3, 2)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"] = {
        i: {key: value.to(device) for key, value in entries.items()}
        for i, entries in saved["state"].items()
    }
    return saved


@pytest.mark.skipif(not AVAILABLE, reason="torch has no device guard for CUDA here")
def test_counts_that_were_mapped_to_an_accelerator_come_back() -> None:
    with fake_cuda():
        saved = saved_on("cuda")
        assert saved["state"][0]["0/step"].is_cuda
        parameter = torch.nn.Parameter(torch.ones(3, 2, device="cuda"))
        optimizer = Optimizer([parameter], "adam()", "lr(0.1)")
        optimizer.load_state_dict(saved)
        assert optimizer.state[parameter]["0/step"].is_cpu
        assert optimizer.state[parameter]["0/exp_avg"].is_cuda


@pytest.mark.skipif(not AVAILABLE, reason="torch has no device guard for CUDA here")
def test_moments_of_an_offloaded_parameter_come_back_to_the_cpu() -> None:
    with fake_cuda():
        optimizers = []
        for _ in range(2):
            parameter = torch.nn.Parameter(torch.ones(3, 2, device="cuda"))
            optimizers.append(Optimizer([parameter], "to([adam()], None, 'cpu')", "lr(0.1)"))
            parameter.grad = torch.ones(3, 2, device="cuda")
        first, second = optimizers
        first.step()
        second.load_state_dict(first.state_dict())
        second.step()
        (entries,) = second.state.values()
        assert entries["0/modules/0/exp_avg"].is_cpu


def test_a_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Optimizer([parameter], "adam()", "lr(0.1)")
    parameter.grad = torch.ones(3, 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(StepError, match=r"CUDA graph.*call step\(\) after"):
        optimizer.step()
    assert not optimizer.state


def test_a_build_for_cuda_steps_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch raises when it is asked about a stream, whose device it cannot initialize."""

    def no_driver() -> bool:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Optimizer([parameter], "adam()", "lr(0.1)")
    parameter.grad = torch.ones(3, 2)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", no_driver)
    optimizer.step()
    assert optimizer.state


def test_blocks_on_accelerators_are_larger() -> None:
    cpu, other = torch.empty(2), torch.empty(2, device="meta")
    assert splitting.block_size(cpu) < splitting.block_size(other)
