"""Merging into a vector and splitting into scalars."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore.modules import LR, ClipNorm, Normalize
from projcore.projections import ScalarProjection, VectorProjection

BOTH = pytest.mark.parametrize("cls", [VectorProjection, ScalarProjection])


class CountedOperations(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (), (0, 4), (5,)]
    return [*(torch.randn(shape, generator=generator) for shape in shapes), torch.ones(3, 2).t()]


def project(projection: Any, given: list[Tensor]) -> Any:
    return projection.project(
        given, given, None, None, [{}] * len(given), [{}] * len(given), "grads"
    )


def unproject(projection: Any, projected: Any, like: list[Tensor]) -> list[Tensor]:
    states: list[Any] = [{}] * len(like)
    return list(projection.unproject(projected, like, None, None, states, states, "update"))


def test_a_vector_has_all_elements_in_row_major_order() -> None:
    given = tensors()
    (vector,) = project(VectorProjection([LR(1.0)]), given)
    assert vector.tolist() == [x for tensor in given for x in tensor.reshape(-1).tolist()]


def test_a_batch_of_scalars_has_each_element() -> None:
    given = tensors()
    (scalars,) = project(ScalarProjection([LR(1.0)]), given)
    assert ScalarProjection.batch_dims == scalars.ndim == 1
    assert [float(s) for s in scalars] == [x for t in given for x in t.reshape(-1).tolist()]


@BOTH
def test_unproject_undoes_project(cls: Any) -> None:
    given = tensors()
    projection = cls([LR(1.0)])
    back = unproject(projection, project(projection, given), given)
    for tensor, same in zip(given, back, strict=True):
        torch.testing.assert_close(same, tensor, rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize(
    ("other", "word"),
    [(torch.zeros(2, dtype=torch.float64), "float64"), (torch.zeros(2, device="meta"), "meta")],
    ids=["dtype", "device"],
)
def test_what_cannot_merge_is_refused_with_the_way_out(cls: Any, other: Tensor, word: str) -> None:
    with pytest.raises(ArgumentError, match=rf"(?s){cls.__name__}.*{word}.*To\("):
        project(cls([LR(1.0)]), [torch.zeros(3), other])


def test_a_bad_mixture_is_refused_when_the_optimizer_is_built() -> None:
    params = [torch.zeros(2, requires_grad=True), torch.zeros(2).double().requires_grad_()]
    with pytest.raises(ArgumentError, match="VectorProjection"):
        Optimizer(params, VectorProjection([ClipNorm(1.0)]))


def test_a_norm_of_each_scalar_is_its_absolute_value() -> None:
    weight = torch.zeros(3, requires_grad=True)
    optimizer = Optimizer([weight], ScalarProjection([Normalize()]), LR(1.0))
    weight.grad = torch.tensor([4.0, -0.25, 100.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.0, 1.0, -1.0]))


@pytest.mark.parametrize("module", [Normalize(), ClipNorm(0.5, per_tensor=True)], ids=str)
def test_scalars_cost_no_loop(module: Any) -> None:
    counts = []
    for size in (10, 10_000):
        weight = torch.zeros(size, requires_grad=True)
        optimizer = Optimizer([weight], ScalarProjection([module]), LR(1.0))
        weight.grad = torch.ones(size)
        with CountedOperations() as counted:
            optimizer.step()
        counts.append(counted.count)
    assert counts[0] == counts[1] < 60
