"""Adafactor follows torch.optim's trajectory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, Adafactor, WeightDecay
from projcore.projections import Stack, VectorProjection, ViewAsReal

SHAPES = ((4, 3), (5,), (), (2, 3, 2), (1, 6))  # torch's divides by zero for empty tensors
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "eps": {"eps": (1.2, 2.0), "d": 1.5},
    "decay": {"lr": 0.3, "weight_decay": 0.1, "beta2_decay": -0.5},
    "constant": {"lr": 1e-3, "beta2_decay": 0.0},
}


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", VARIANTS)
def test_200_steps(
    name: str, dtype: torch.dtype, tensor_place: Any, follow: Any, same: Any
) -> None:
    arguments = VARIANTS[name]
    if dtype is torch.float32 and "eps" not in arguments:
        arguments = {**arguments, "eps": (1e-7, 1e-3)}  # inside To(..., "float64") it is smaller
    ours = follow(
        lambda params: Optimizer(params, *tensor_place([Adafactor(**arguments)])),
        dtype,
        shapes=SHAPES,
    )
    same(ours, follow(partial(torch.optim.Adafactor, **arguments), dtype, shapes=SHAPES))


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
def test_groups_and_schedules(tensor_place: Any, follow: Any, same: Any) -> None:
    how = {
        "groups": [{"lr": 0.5, "weight_decay": 0.1}, {"eps": (1e-3, 0.5), "d": 2.0}],
        "schedule": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30),
        "steps": 80,
        "shapes": SHAPES,
    }
    ours = follow(lambda params: Optimizer(params, *tensor_place([Adafactor(0.2)])), **how)
    same(ours, follow(partial(torch.optim.Adafactor, lr=0.2), **how))


EQUAL = ((4, 3), (5,), (4, 3), (3, 4), (2, 3, 2), (5,), (4, 3), (), (2, 3, 2))


def stack_everything(monkeypatch: Any) -> None:
    """Stacks tensors as on an accelerator, at most three of the shape of the first."""
    monkeypatch.setattr("projcore_adaptive.adafactor.prefers_stacks", lambda tensor: True)
    monkeypatch.setattr("projcore_adaptive.adafactor.BLOCK", 36)


@pytest.mark.parametrize("name", VARIANTS)
def test_stacks_of_equal_shapes(name: str, monkeypatch: Any, follow: Any, same: Any) -> None:
    arguments = VARIANTS[name]
    theirs = follow(partial(torch.optim.Adafactor, **arguments), torch.float64, shapes=EQUAL)
    stack_everything(monkeypatch)
    for block in (1, 30, 1000):
        monkeypatch.setattr("projcore_adaptive.adafactor.CPU_BLOCK", block)
        ours = follow(
            lambda params: Optimizer(params, Adafactor(**arguments)), torch.float64, shapes=EQUAL
        )
        same(ours, theirs)


@pytest.mark.parametrize("passes", [frozenset(), frozenset({"fold", "fuse"})])
@pytest.mark.parametrize("lr", [0.1, None])
@pytest.mark.parametrize("outer", [list, Stack])
def test_stacks_change_only_the_rounding(
    outer: Any, lr: float | None, passes: frozenset[str], monkeypatch: Any
) -> None:
    """Also where each tensor is a batch."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(s, generator=generator, dtype=torch.float64) for s in EQUAL]
    grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in EQUAL]
    after = [] if lr else [WeightDecay(0.1), LR(0.01)]
    ends = []
    for one_by_one in (True, False):
        if not one_by_one:
            stack_everything(monkeypatch)
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        chain = outer([Adafactor(lr), *after])
        optimizer = Optimizer(params, *(chain if outer is list else [chain]))
        optimizer._use_passes(passes)
        for _ in range(3):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        ends.append([param.detach() for param in params])
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-13)


def test_written_by_itself_it_is_the_update(monkeypatch: Any) -> None:
    """Bitwise, in blocks of one parameter."""
    monkeypatch.setattr("projcore_adaptive.adafactor.CPU_BLOCK", 1)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ends = []
    for passes in (frozenset({"fold"}), frozenset({"fold", "fuse"})):
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = Optimizer(params, Adafactor(None), WeightDecay(0.1), LR(0.01))
        optimizer._use_passes(passes)
        for _ in range(3):
            for param in params:
                param.grad = param.detach().cos()
            optimizer.step()
        assert ("some parameters after the other" in optimizer.describe()) == ("fuse" in passes)
        ends.append([param.detach() for param in params])
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_vector_of_all_is_one_tensor() -> None:
    start = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = start.clone().requires_grad_()
    parts = [part.clone().requires_grad_() for part in (start[:6].view(2, 3), start[6:])]
    ours = Optimizer(parts, VectorProjection([Adafactor(0.1, weight_decay=0.1)]))
    theirs = torch.optim.Adafactor([whole], lr=0.1, weight_decay=0.1)
    for _ in range(20):
        whole.grad = whole.detach().cos()
        for part in parts:
            part.grad = part.detach().cos()
        ours.step()
        theirs.step()
    merged = torch.cat([part.detach().reshape(-1) for part in parts])
    torch.testing.assert_close(merged, whole.detach(), rtol=1e-12, atol=1e-12)


def memory(tensor: Tensor) -> dict[str, tuple[int, ...]]:
    tensor.requires_grad_()
    tensor.grad = torch.ones_like(tensor)
    optimizer = Optimizer([tensor], Adafactor())
    optimizer.step()
    return {key.removeprefix("0/"): v.shape for key, v in optimizer.state[tensor].items()}


def test_memory_is_rows_and_columns() -> None:
    matrix, vector = memory(torch.ones(3, 4)), memory(torch.ones(4))
    assert matrix == {"step": (), "row_var": (3, 1), "col_var": (1, 4)}
    assert vector == {"step": (), "variance": (4,)}
    assert memory(torch.ones(2, 3, 4))["row_var"] == (2, 3, 1)


def test_empty_tensors_leave_no_nan() -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        weight = torch.zeros(shape, requires_grad=True)
        weight.grad = torch.zeros(shape)
        optimizer = Optimizer([weight], Adafactor())
        optimizer.step()
        assert all(value.isfinite().all() for value in optimizer.state[weight].values())


def test_without_lr_it_needs_no_parameters() -> None:
    module = Adafactor(None)
    assert module.needs == frozenset()
    assert "lr" not in module.defaults
    weight = torch.zeros(2, requires_grad=True)
    Optimizer([weight], VectorProjection([module, LR(0.1)], project_params=False))


def test_complex_tensors() -> None:
    weight = torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"complex tensor of shape \(2, 2\).*ViewAsReal"):
        Optimizer([weight], Adafactor())
    Optimizer([weight], ViewAsReal([Adafactor()]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"lr": -1.0}, "lr"),
        ({"beta2_decay": 0.1}, "beta2_decay"),
        ({"eps": (-1.0, 1e-3)}, r"eps\[0\]"),
        ({"eps": (None, -1e-3)}, r"eps\[1\]"),
        ({"d": 0.5}, "d"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"lr": None, "weight_decay": 0.1}, "weight_decay"),
    ],
)
def test_values_out_of_range(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{name}="):
        Adafactor(**arguments)


def test_eps_that_is_no_pair() -> None:
    with pytest.raises(ArgumentTypeError, match="eps"):
        Adafactor(eps=1e-3)  # type: ignore[arg-type]
