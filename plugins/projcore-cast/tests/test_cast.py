"""Other dtypes and devices, and complex numbers as pairs of real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Observer, Optimizer, ProjectionBase, Transform
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, Adam, Normalize
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal


class Seen(Transform):
    """Notes the tensors that it is given."""

    needs = frozenset({"params", "grads"})

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[Any] = []

    def apply(self, tensors, params, grads, loss, states, settings):  # type: ignore[no-untyped-def]
        self.lists = [tensors, params, grads]
        return tensors


def step(projection: Any, weight: torch.Tensor) -> None:
    weight.requires_grad_()
    weight.grad = torch.ones_like(weight)
    Optimizer([weight], projection, LR(0.1)).step()


@pytest.mark.parametrize("dtype", [torch.float64, "float64", "torch.float64"])
def test_everything_inside_has_the_dtype(dtype: Any) -> None:
    seen = Seen()
    weight = torch.zeros(3)
    step(To([seen], dtype), weight)
    assert {tensor.dtype for tensors in seen.lists for tensor in tensors} == {torch.float64}
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.1))


def test_none_keeps_the_dtype() -> None:
    seen = Seen()
    step(To([seen], None), torch.zeros(3, dtype=torch.bfloat16))
    assert {tensor.dtype for tensors in seen.lists for tensor in tensors} == {torch.bfloat16}


def test_a_real_parameter_in_a_complex_dtype_stays_real() -> None:
    weight = torch.zeros(3)
    step(To([Seen()], "complex64"), weight)
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.1))


def test_a_complex_parameter_does_not_lose_its_imaginary_part() -> None:
    with pytest.raises(ArgumentError, match="ViewAsReal"):
        step(To([LR(1.0)], "float32"), torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", ["float46", "Tensor", "int64", torch.bool])
def test_what_is_no_dtype_for_updates_is_refused(dtype: Any) -> None:
    with pytest.raises(ArgumentError, match=r"To\(dtype="):
        To([LR(1.0)], dtype)


def test_what_is_no_device_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"To\(device='abacus'"):
        To([LR(1.0)], None, "abacus")
    with pytest.raises(ArgumentTypeError, match=r"To\(device=3"):
        To([LR(1.0)], None, 3)  # type: ignore[arg-type]


def test_complex_tensors_are_pairs_and_real_ones_untouched() -> None:
    seen = Seen()
    params = [torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(4)]
    for param in params:
        param.requires_grad_()
        param.grad = torch.ones_like(param)
    Optimizer(params, ViewAsReal([seen])).step()
    assert [tuple(tensor.shape) for tensor in seen.lists[1]] == [(2, 3, 2), (4,)]
    assert seen.lists[1][1].data_ptr() == params[1].data_ptr()
    assert seen.lists[1][0].data_ptr() == params[0].data_ptr()


def test_conjugate_gradients_are_viewed_too() -> None:
    weight = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    weight.grad = torch.tensor([1 + 2j, 3j]).conj()
    Optimizer([weight], ViewAsReal([LR(1.0)])).step()
    torch.testing.assert_close(weight.detach(), -torch.tensor([1 - 2j, -3j]))


def test_elementwise_modules_inside_pairs_leave_a_vector_too() -> None:
    params = [torch.zeros(n, dtype=torch.complex64, requires_grad=True) for n in (2, 3)]
    optimizer = Optimizer(params, VectorProjection([ViewAsReal([Adam()])]), LR(0.1))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    shapes = [tuple(optimizer.state[p]["0/modules/0/modules/0/exp_avg"].shape) for p in params]
    assert shapes == [(2, 2), (3, 2)]


def test_a_complex_scalar_is_normalized_by_its_magnitude() -> None:
    weight = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    optimizer = Optimizer([weight], ScalarProjection([ViewAsReal([Normalize()])]), LR(1.0))
    weight.grad = torch.tensor([3 + 4j, -2j])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6 - 0.8j, 1j]))


class Last(Observer):
    """What must come last: it keeps the parameters as the step left them."""

    scope = "element"
    kinds = {"seen": "first"}

    def init(self, tensor: torch.Tensor, settings: Any) -> dict[str, Any]:
        return {"seen": torch.zeros_like(tensor)}

    def observe(self, params: list[torch.Tensor], states: Any, settings: Any) -> None:
        for param, state in zip(params, states, strict=True):
            state["seen"].copy_(param)


@pytest.mark.parametrize("master", [False, True])
def test_an_observer_may_stand_where_points_are_the_same(master: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    inner = ViewAsReal([To([LR(0.1), Last()], "float32", master=master)])
    optimizer = Optimizer([weight], inner)
    with pytest.raises(ArgumentError, match="must reach the parameters"):
        Optimizer([weight], inner, LR(1.0))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.tolist() == [0.8984375] * 3
    seen = optimizer.state[weight]["0/modules/0/modules/1/seen"]
    torch.testing.assert_close(seen, torch.full((3,), 0.9), rtol=0, atol=1e-7)


def test_a_master_copy_may_not_stand_in_another_cast() -> None:
    with pytest.raises(ArgumentError, match="Use it outside this projection"):
        To([VectorProjection([To([LR(0.1)], "float64", master=True)])], "float32")


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1,), ()])
def test_pairs_that_lie_askew_are_copied(shape: tuple[int, ...]) -> None:
    """A projection inside may well return views of a larger tensor."""

    class Askew(ProjectionBase):
        scope = "tensor"

        def project(self, tensors: list[torch.Tensor], *_: Any) -> list[torch.Tensor]:
            return tensors

        def unproject(self, projected_tensors: Any, *_: Any) -> list[torch.Tensor]:
            return [
                torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
                for tensor in projected_tensors
            ]

    weight = torch.nn.Parameter(torch.ones(shape, dtype=torch.complex64))
    weight.grad = torch.full_like(weight, 1 + 2j)
    Optimizer([weight], ViewAsReal([Askew([LR(0.5)])]), "heavy_ball(0.0)").step()
    assert torch.equal(weight.detach(), torch.full_like(weight, 0.5 - 1j))
