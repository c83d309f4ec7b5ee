"""Other shapes: reshape, merged dimensions, permuted dimensions, cubes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore.testing.map import Map
from projcore.testing.parts import Moments, Momentum, Scale, UnitNorm
from projcore.testing.strategies import tensor_lists
from projcore_structural import MergeDims, Permute, Reshape, Tensorize, VectorProjection
from projcore_structural.reshape import merge_dims
from projcore_structural.tensorize import root, sides

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
ANY = [
    Reshape([Scale()], (-1,)),
    MergeDims([Scale()], 6),
    Tensorize([Scale()]),
    Tensorize([Scale()], 3),
    Tensorize([Scale()], 1, max_side=3),
]


@pytest.mark.parametrize("projection", ANY, ids=str)
@settings(max_examples=40, deadline=None)
@given(tensors=tensor_lists(dtypes=DTYPES))
def test_elements_stay_in_row_major_order(projection: Any, tensors: list[Tensor]) -> None:
    made = Map(projection, tensors)
    inside = made.project(tensors, "update")
    for tensor, reshaped in zip(tensors, inside, strict=True):
        flat = tensor.reshape(-1)
        assert torch.equal(reshaped.reshape(-1)[: flat.numel()], flat)
        assert not reshaped.reshape(-1)[flat.numel() :].any()
    assert all(map(torch.equal, made.unproject(inside, "update"), tensors))


@pytest.mark.parametrize(
    ("shape", "given_shape", "expected"),
    [
        ((-1,), (), (1,)),
        ((-1,), (2, 3), (6,)),
        ((None, -1), (2, 3, 5), (2, 15)),
        ((None, -1), (4,), (4, 1)),
        ((None, -1), (), None),
        ((None, -1), (0, 4), None),  # what is left over of none is not known
        ((None, 1), (4,), (4, 1)),
        ((-1, 4), (2, 6), (3, 4)),
        ((-1, 4), (2, 5), None),
        ((3, 4), (2, 6), (3, 4)),
        ((3, 4), (2, 3), None),
        ((), (1, 1), ()),
        ((), (2,), None),
        ((5, -1), (0, 4), (5, 0)),
    ],
)
def test_shapes_are_those_of_torch(shape: Any, given_shape: Any, expected: Any) -> None:
    found = Reshape([Scale()], shape).find(given_shape)
    assert found == expected
    if found is not None:
        wanted = [n if n is not None else given_shape[i] for i, n in enumerate(shape)]
        assert torch.empty(given_shape).reshape(wanted).shape == found


def test_a_norm_follows_the_rows_that_a_shape_makes() -> None:
    """Kernels as matrices: what a module for matrices does with them, done by hand."""
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    inner = Reshape(["orthogonalize(flatten=True, method='svd')"], (None, -1))
    optimizer = Optimizer([kernel], inner)
    kernel.grad = torch.randn_like(kernel)
    left, _, right = torch.linalg.svd(kernel.grad.reshape(4, 12), full_matrices=False)
    expected = kernel.detach() - (left @ right).reshape(4, 3, 2, 2)
    optimizer.step()
    torch.testing.assert_close(kernel.detach(), expected)
    assert "4 x 12" in optimizer.describe()
    Optimizer([kernel, bias], Reshape([UnitNorm()], (6, -1)))  # the bias passes
    with pytest.raises(ArgumentError, match="applies to none"):
        Optimizer([bias], Reshape([UnitNorm()], (6, -1)))


@pytest.mark.parametrize("shape", [(-1, -1), (-2,), (2.0,), "a", (True, -1)])
def test_wrong_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(ArgumentError, match="Reshape was given the shape"):
        Reshape([Scale()], shape)


@pytest.mark.parametrize(
    ("shape", "max_size", "expected"),
    [
        ((8, 3, 5, 5), 100, (24, 25)),
        ((64, 3, 7, 7), 10000, (9408,)),
        ((512, 512, 3, 3), 10000, (512, 4608)),
        ((20000, 2, 3), 10000, (20000, 6)),
        ((2, 20000, 3), 10000, (2, 20000, 3)),
        ((1, 20000, 1, 1), 10000, (20000,)),
        ((1, 1), 10000, (1,)),
        ((), 10000, (1,)),
        ((3, 0, 4), 10, (0,)),
        ((2, 3), 1, (2, 3)),
        ((2, 3), 5, (2, 3)),
        ((2, 3), 6, (6,)),
    ],
)
def test_dimensions_merge_by_the_rule_of_soap(shape: Any, max_size: int, expected: Any) -> None:
    assert merge_dims(shape, max_size) == expected


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 50))
def test_merged_dimensions_are_no_longer_than_allowed(shape: list[int], max_size: int) -> None:
    merged = merge_dims(shape, max_size)
    assert math.prod(merged) == math.prod(shape)
    assert all(length <= max_size or length in shape for length in merged)
    if 0 not in shape:
        assert all(a * b > max_size for a, b in itertools.pairwise(merged))


def test_max_size_is_checked() -> None:
    with pytest.raises(ArgumentError, match="max_size"):
        MergeDims([Scale()], 0)


@settings(max_examples=40, deadline=None)
@given(tensor_lists(dtypes=DTYPES))
def test_permuted_is_transposed(tensors: list[Tensor]) -> None:
    for dims in ((0,), (1, 0), (2, 0, 1), (3, 1, 0, 2), (4, 0, 3, 1, 2)):
        fitting = [tensor for tensor in tensors if tensor.ndim == len(dims)]
        if fitting:
            made = Map(Permute([Scale()], dims), fitting)
            inside = made.project(fitting, "update")
            for tensor, turned in zip(fitting, inside, strict=True):
                assert torch.equal(turned, tensor.permute(dims))
            assert all(map(torch.equal, made.unproject(inside, "update"), fitting))


@pytest.mark.parametrize("dims", [(), (1,), (0, 0), (0, 2), (-1, 0), 1])
def test_what_is_no_permutation_is_refused(dims: Any) -> None:
    with pytest.raises(ArgumentError, match="each dimension once"):
        Permute([Scale()], dims)


@given(st.integers(0, 2**53), st.integers(1, 12))
def test_roots_are_exact(count: int, degree: int) -> None:
    found = root(count, degree)
    assert found**degree >= count
    assert found == 0 or (found - 1) ** degree < count


@pytest.mark.parametrize(("count", "side", "ndim"), [(125, 5, 3), (216, 6, 3), (16807, 7, 5)])
def test_exact_powers_make_exact_cubes(count: int, side: int, ndim: int) -> None:
    assert sides(count, 1, max_side=side) == (side,) * ndim
    assert sides(count, ndim) == (side,) * ndim
    assert len(sides(count + 1, 1, max_side=side)) == ndim + 1


@given(st.integers(2, 2000), st.integers(2, 4))
def test_roots_beside_powers_are_exact(side: int, degree: int) -> None:
    assert root(side**degree, degree) == root(side**degree - 1, degree) == side
    assert root(side**degree + 1, degree) == side + 1


@given(st.integers(0, 10**6), st.integers(1, 6), st.none() | st.integers(2, 300))
def test_cubes_have_little_padding(count: int, ndim: int, max_side: int | None) -> None:
    shape = sides(count, ndim, max_side)
    assert len(shape) >= ndim
    if max_side is not None:
        assert max(shape) <= max_side
        assert len(shape) == ndim or max_side ** (len(shape) - 1) < count
    padding = math.prod(shape) - count
    assert padding >= 0
    if count:
        for side in shape:  # no layer of zeros only
            assert padding < math.prod(shape) // side
        assert max(shape) == root(count, len(shape))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradient_descent_in_a_cube_is_gradient_descent(ndim: int) -> None:
    shapes = ((4, 3), (5,), (), (7, 11), (0, 2))
    ends = []
    for modules in ([Tensorize([Momentum(), Moments(), Scale()], ndim)], None):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]
        optimizer = Optimizer(params, *(modules or [Momentum(), Moments(), Scale()]))
        for _ in range(4):
            optimizer.zero_grad()
            sum((p.sin() * p).sum() for p in params).backward()
            optimizer.step()
        ends.append([p.detach() for p in params])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def test_norms_in_a_cube_are_those_outside() -> None:
    params = [torch.zeros(7, requires_grad=True), torch.zeros(7, requires_grad=True)]
    for param in params:
        param.grad = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 9.0, 4.0])
    Optimizer(params[:1], Tensorize([UnitNorm()])).step()
    Optimizer(params[1:], UnitNorm()).step()
    torch.testing.assert_close(params[0], params[1])


def test_a_line_search_works_in_one_cube_of_all() -> None:
    def minimise(*modules: Any) -> float:
        x = torch.tensor([-1.2, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
        optimizer = Optimizer([x], *modules)

        def closure(backward: bool = True) -> Tensor:
            optimizer.zero_grad()
            loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
            if backward:
                loss.backward()
            return loss

        for _ in range(60):
            loss = optimizer.step(closure)
        return float(loss.detach())

    inside = minimise(VectorProjection([Tensorize(["lbfgs()", "strong_wolfe()"])]))
    assert inside == pytest.approx(minimise("lbfgs()", "strong_wolfe()"), abs=1e-12)
    assert inside < 1e-10


@pytest.mark.parametrize("wrong", [{"ndim": 0}, {"max_side": 1}])
def test_wrong_cubes_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Tensorize([Scale()], **wrong)
