"""Parameters of several dtypes and devices: each call and each write gets those that are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer, Transform

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Noted(Transform):
    """Halves the update, and notes what it was given."""

    scope = "element"

    def __init__(self) -> None:
        self.calls: list[set[tuple[torch.dtype, str]]] = []
        super().__init__()

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        self.calls.append({(tensor.dtype, tensor.device.type) for tensor in tensors})
        return list(torch._foreach_mul(tensors, 0.5))


def mixed(devices: tuple[str, ...] = ("cpu",)) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(3, 2).to(dtype).to(device))
        for _ in range(2)
        for dtype in DTYPES
        for device in devices
    ]


def step(optimizer: Optimizer, parameters: list[Tensor], count: int = 3) -> None:
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = parameter.detach().sin()
        optimizer.step()


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "meta")], ids="-".join)
def test_a_call_gets_tensors_of_one_format(devices: tuple[str, ...]) -> None:
    parameters, noted = mixed(devices), Noted()
    step(Optimizer(parameters, noted, "lr(0.1)"), parameters, 1)
    assert all(len(formats) == 1 for formats in noted.calls)
    assert len(noted.calls) == len(DTYPES) * len(devices)


CHAINS: dict[str, tuple[Any, ...]] = {
    "adam": ("adam()", "lr(0.01)"),
    "heavy ball": ("heavy_ball(0.9)", "weight_decay(0.1)", "lr(0.01)"),
    "in float64": ("to([adam()], 'float64')", "lr(0.01)"),
    "low rank": ("low_rank([adam()], rank=1, period=2, stagger=False)", "lr(0.01)"),
    "a factor per parameter": ("normalize()", "lr(0.01)"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_mixed_parameters_move_as_those_of_one_dtype_do(name: str) -> None:
    parameters, others = mixed(), mixed()
    step(Optimizer(parameters, *CHAINS[name]), parameters)
    for dtype in DTYPES:
        some = [parameter for parameter in others if parameter.dtype == dtype]
        step(Optimizer(some, *CHAINS[name]), some)
    for one, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CHAINS)
def test_parameters_may_be_on_two_devices(name: str) -> None:
    """As pipeline stages are; of tensors without storage, this tells that operations run."""
    parameters = mixed(("cpu", "meta"))
    optimizer = Optimizer(parameters, *CHAINS[name])
    step(optimizer, parameters)
    assert all(parameter in optimizer.state or name.startswith("a ") for parameter in parameters)


def test_an_update_of_a_projection_leaves_parameters_without_a_gradient() -> None:
    parameters = mixed()
    optimizer = Optimizer(parameters, "to([heavy_ball(0.9)], 'float64')", "lr(0.1)")
    step(optimizer, parameters)
    before = parameters[0].detach().clone()
    for parameter in parameters:
        parameter.grad = parameter.detach().sin()
    parameters[0].grad = None
    optimizer.step()
    assert torch.equal(parameters[0], before)
