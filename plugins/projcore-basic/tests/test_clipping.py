"""Clipping, normalization and sign against torch's own functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, NonFiniteError
from projcore.modules import LR, Adam, Centralize, ClipNorm, ClipValue, HeavyBall, Normalize, Sign
from projcore.projections import ScalarProjection, VectorProjection

ORDERS: list[Any] = [1, 2.0, 3, "inf", math.inf]


def gradients(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(4, 3), (5,), (), (0, 2)]
    made = [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]
    return [made[0].t(), *made[1:]]


def update(grads: Sequence[Tensor], *modules: Module) -> list[Tensor]:
    """Returns what modules make of gradients."""
    params = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    Optimizer(params, *modules).step()
    for param, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)  # not written
    return [-param.detach() for param in params]


def clipped(grads: Sequence[Tensor], max_norm: float, order: Any) -> list[Tensor]:
    params = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(params, max_norm, order)
    return [param.grad for param in params if param.grad is not None]


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(list(ours), list(theirs), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_clip_norm(order: Any, max_norm: float, dtype: torch.dtype) -> None:
    grads = gradients(dtype)
    if float(order) == math.inf:
        grads = grads[:-1]  # torch has no largest element of an empty tensor
    close(update(grads, ClipNorm(max_norm, order)), clipped(grads, max_norm, order))


def test_clip_norm_at_the_bound() -> None:
    # The 1e-6 of torch scales a norm of exactly the bound.
    (result,) = update([torch.ones(1, dtype=torch.float64)], ClipNorm(1.0))
    assert float(result) == 1 / (1 + 1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_clip_norm_per_tensor(order: Any) -> None:
    grads = gradients()
    expected = [clipped([g], 0.5, order)[0] for g in grads[:-1]]
    close(update(grads, ClipNorm(0.5, order, per_tensor=True)), [*expected, grads[-1]])


@pytest.mark.parametrize("order", ORDERS)
def test_normalize(order: Any) -> None:
    grads = gradients()
    expected = [
        torch.nn.functional.normalize(g.reshape(-1), float(order), dim=0).reshape(g.shape)
        for g in grads[:-1]
    ]
    close(update(grads, Normalize(order)), [*expected, grads[-1]])


@pytest.mark.parametrize("order", ORDERS)
def test_normalize_all(order: Any) -> None:
    grads = gradients()
    merged = torch.cat([g.reshape(-1) for g in grads])
    expected = merged / torch.linalg.vector_norm(merged, float(order))
    result = update(grads, Normalize(order, per_tensor=False))
    close([torch.cat([r.reshape(-1) for r in result])], [expected])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dim", [0, -1, 2, (1, 2), (-2, 1)])
def test_normalize_along_dimensions(order: Any, dim: Any) -> None:
    random = torch.Generator().manual_seed(0)
    grad = torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
    dims = (dim,) if isinstance(dim, int) else (1,) if dim == (-2, 1) else dim
    norm = torch.linalg.vector_norm(grad, float(order), dims, keepdim=True)
    close(update([grad, grad[:0]], Normalize(order, dim=dim)), [grad / norm, grad[:0]])


def test_normalize_along_a_dimension_that_is_not_there() -> None:
    grads = gradients()
    whole = update(grads[1:3], Normalize())
    close(update(grads, Normalize(dim=1))[1:3], whole)
    close(update(grads, Normalize(dim=(0, 1)))[:3], update(grads, Normalize())[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_normalize_zeros(dtype: torch.dtype) -> None:
    for module in (Normalize(), Normalize(per_tensor=False)):
        (result,) = update([torch.zeros(3, dtype=dtype)], module)
        torch.testing.assert_close(result, torch.zeros(3, dtype=dtype), rtol=0, atol=0)


def test_normalize_below_eps() -> None:
    (result,) = update([torch.tensor([3e-3, 4e-3], dtype=torch.float64)], Normalize(eps=0.01))
    close([result], [torch.tensor([0.3, 0.4], dtype=torch.float64)])


WIDE: list[Module] = [
    ClipNorm(0.5),
    ClipNorm(0.5, 1, per_tensor=True),
    Normalize(),
    Normalize(3, per_tensor=False),
    Normalize("inf"),
]


@pytest.mark.parametrize("module", WIDE, ids=str)
def test_in_a_vector_all_is_one_tensor(module: Any) -> None:
    grads = gradients()
    merged = update([torch.cat([g.reshape(-1) for g in grads])], module)
    result = update(grads, VectorProjection([module]))
    close([torch.cat([r.reshape(-1) for r in result])], merged)


@pytest.mark.parametrize("module", WIDE, ids=str)
def test_in_scalars_each_is_a_tensor(module: Any) -> None:
    grads = gradients()
    numbers = [x for g in grads for x in g.reshape(-1)]
    result = update(grads, ScalarProjection([module]))
    expected = torch.stack(update(numbers, module))
    close([torch.cat([r.reshape(-1) for r in result])], [expected])


@pytest.mark.parametrize(
    "module",
    [
        ClipNorm(0.5, per_tensor=True),
        Normalize(1),
        Normalize(dim=0),
        Normalize("inf", dim=-1),
        Normalize(dim=2),
        Centralize(),
    ],
    ids=str,
)
def test_batches(module: Any) -> None:
    # Items of a batch are independent: as if each were given alone.
    batch = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (result,) = module.apply([batch], None, None, None, [{}], [module.defaults], batch_dims=1)
    items = module.apply(
        list(batch), None, None, None, [{}] * 6, [module.defaults] * 6, batch_dims=0
    )
    close(list(result), items)


def test_clip_value() -> None:
    grads = gradients()
    close(update(grads, ClipValue(0.3)), [g.clamp(-0.3, 0.3) for g in grads])


REFUSING: dict[str, Any] = {
    "clip_norm": lambda nonfinite: ClipNorm(1.0, nonfinite=nonfinite),
    "clip_norm per tensor": lambda nonfinite: ClipNorm(1.0, 1, True, nonfinite),
    "clip_value": lambda nonfinite: ClipValue(1.0, nonfinite),
    "normalize": lambda nonfinite: Normalize(nonfinite=nonfinite),
    "normalize all": lambda nonfinite: Normalize(per_tensor=False, nonfinite=nonfinite),
    "normalize rows": lambda nonfinite: Normalize(dim=1, nonfinite=nonfinite),
}


@pytest.mark.parametrize("make", REFUSING.values(), ids=REFUSING)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [list, lambda modules: [VectorProjection(modules)]])
def test_numbers_that_are_not_finite_are_refused(make: Any, bad: float, place: Any) -> None:
    """Before anything changes; the next step is as if there had been none."""

    def run(bads: Sequence[float | None]) -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        model = torch.nn.Linear(3, 2)
        for param in model.parameters():
            torch.nn.init.ones_(param)
        optimizer = Optimizer(model.named_parameters(), *place([make("raise"), Adam(), LR(0.1)]))
        for each in bads:
            if each is not None:
                for param in model.parameters():
                    param.grad = torch.ones_like(param)
                model.bias.grad[1] = each
                before = [param.detach().clone() for param in model.parameters()]
                with pytest.raises(NonFiniteError, match=r"parameter 'bias', of shape \(2,\)"):
                    optimizer.step()
                torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)
                continue
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=random)
            optimizer.step()
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [*model.parameters(), *kept]

    torch.testing.assert_close(run([None, bad, None]), run([None, None]), rtol=0, atol=0)


@pytest.mark.parametrize("make", REFUSING.values(), ids=REFUSING)
def test_a_module_may_ask_that_the_step_be_left_out(make: Any) -> None:
    for nonfinite in ("raise", "skip"):
        module = make(nonfinite)
        with pytest.raises(NonFiniteError) as caught:
            module.apply([torch.full((2, 2), math.nan)], None, None, None, [{}], [module.defaults])
        assert caught.value.skip == (nonfinite == "skip")
        assert not module.traceable
    with pytest.raises(ArgumentError, match="is one of 'allow', 'raise', 'skip'"):
        make("no")


@pytest.mark.parametrize("make", REFUSING.values(), ids=REFUSING)
def test_what_is_finite_is_as_without(make: Any) -> None:
    grads = [grad for grad in gradients() if grad.ndim == 2 and grad.numel()]
    close(update(grads, make("raise")), update(grads, make("allow")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sign_of_memory_that_is_lost_shows(dtype: torch.dtype) -> None:
    weight = torch.zeros(4, dtype=dtype, requires_grad=True)
    optimizer = Optimizer([weight], HeavyBall(0.9), Sign(), LR(0.5))
    for grad in ([1.0, math.nan, math.inf, 0.0], [1.0, 1.0, 1.0, -1.0]):
        weight.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
    expected = torch.tensor([-1.0, math.nan, math.nan, 0.5], dtype=dtype)
    torch.testing.assert_close(weight.detach(), expected, equal_nan=True)


def test_sign() -> None:
    grads = gradients()
    close(update(grads, Sign()), [g.sign() for g in grads])


@pytest.mark.parametrize("module", [ClipValue(0.3), Sign()], ids=str)
def test_complex_numbers_as_pairs(module: Any) -> None:
    grads = gradients(torch.complex128)
    expected = update([torch.view_as_real(g) for g in grads], module)
    result = update([g.conj() for g in grads], module)
    close(result, [torch.view_as_complex(e.contiguous()).conj() for e in expected])


def test_groups_that_disagree() -> None:
    params = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[0], "max_norm": 0.5}, {"params": params[1]}]
    for param in params:
        param.grad = torch.ones(2)
    with pytest.raises(ArgumentError, match=r"max_norm is 0\.5 in one and 1\.0 in another"):
        Optimizer(groups, ClipNorm(1.0), LR(0.1)).step()
    Optimizer(groups, ClipNorm(1.0, per_tensor=True), LR(0.1)).step()


def test_gradients_that_are_missing_do_not_count() -> None:
    params = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    params[1].grad = torch.tensor([3.0, 4.0])
    Optimizer(params, ClipNorm(1.0), LR(1.0)).step()
    torch.testing.assert_close(params[1].detach(), torch.tensor([-0.6, -0.8]))


def test_norms_that_are_not_finite() -> None:
    grads = [torch.tensor([1.0, math.inf]), torch.ones(1)]
    torch.testing.assert_close(
        update(grads, ClipNorm(1.0)), clipped(grads, 1.0, 2.0), equal_nan=True
    )
