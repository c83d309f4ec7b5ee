"""The kit's strategy draws every awkward kind of tensor, and layouts keep all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from hypothesis import find, given, settings

from projcore import Module, Optimizer, registry
from projcore.errors import ProjcoreError
from projcore.testing.strategies import tensor_lists

MANY = settings(max_examples=500, deadline=None, database=None)


def strides(tensor):
    """The strides that matter: those of dimensions longer than 1."""
    return [s for s, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1]


KINDS = {
    **{f"{dims} dimensions": lambda t, dims=dims: t.ndim == dims for dims in range(6)},
    "empty": lambda t: t.numel() == 0,
    "length 1": lambda t: 1 in t.shape and t.numel() > 1,
    "prime lengths": lambda t: len({3, 5, 7, 11, 13} & set(t.shape)) > 1,
    "transposed": lambda t: t.ndim > 1 and not t.is_contiguous() and t.mT.is_contiguous(),
    "gaps": lambda t: t.numel() > 1 and min(strides(t)) > 1,
    "an offset": lambda t: t.storage_offset() > 0,
    "shared memory": lambda t: 0 in strides(t),
    "channels last": lambda t: (
        t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
    ),
    "channels last, 5-d": lambda t: (
        t.ndim == 5
        and not t.is_contiguous()
        and t.is_contiguous(memory_format=torch.channels_last_3d)
    ),
    "different values": lambda t: len(set(t.flatten().tolist())) > 50,
    "float32": lambda t: t.dtype == torch.float32,
    "float64": lambda t: t.dtype == torch.float64,
    "bfloat16": lambda t: t.dtype == torch.bfloat16,
}


@pytest.fixture(scope="module")
def drawn():
    """Many lists, the same ones each time."""
    lists = []

    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    @given(tensor_lists())
    def collect(tensors):
        lists.append(tensors)

    collect()
    return lists


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws(kind, drawn):
    assert sum(any(map(KINDS[kind], tensors)) for tensors in drawn) >= 3


def test_it_draws_equal_shapes_and_several_dtypes(drawn):
    assert any(len({t.shape for t in some}) < len(some) and some[0].ndim > 1 for some in drawn)
    assert any(len({t.dtype for t in some}) == 3 for some in drawn)
    assert not any(t.is_complex() for some in drawn for t in some)


def test_it_draws_complex_tensors_if_asked():
    (tensor,) = find(
        tensor_lists(dtypes=[torch.complex64], max_tensors=1),
        lambda tensors: tensors[0].is_complex() and tensors[0].imag.any(),
        settings=MANY,
    )
    assert tensor.dtype == torch.complex64


@pytest.mark.parametrize(
    ("has", "shape"),
    [
        (lambda t: True, ()),
        (lambda t: t.numel() > 1, (2,)),
        (lambda t: t.ndim == 3, (1, 1, 1)),
        (lambda t: t.numel() == 0, (0,)),
    ],
)
def test_what_it_draws_shrinks(has, shape):
    (tensor,) = find(tensor_lists(), lambda tensors: any(map(has, tensors)), settings=MANY)
    assert tensor.shape == shape
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    assert not tensor.any()


@settings(max_examples=200, deadline=None)
@given(tensor_lists(one_dtype=True, max_tensors=3, max_dims=3, max_elements=50, empty=False))
def test_it_keeps_within_what_is_asked(tensors):
    assert 1 <= len(tensors) <= 3
    assert len({tensor.dtype for tensor in tensors}) == 1
    assert not tensors[0].is_complex()
    for tensor in tensors:
        assert tensor.ndim <= 3
        assert 0 < tensor.numel() <= 50


def test_without_hypothesis_it_says_what_to_install():
    code = "import sys; sys.modules['hypothesis'] = None; import projcore.testing.strategies"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs hypothesis, which cannot be imported. Install it: pip" in done.stderr


class Same(Module):
    """Hands the update on; of the widest scope, so that it runs inside, whatever is around it."""

    def step(self, update, objective, state):
        return list(update)


KEPT = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
LAYOUTS = [each for each in registry.components("projection") if "layout" in each.tags]


@pytest.mark.parametrize("component", LAYOUTS, ids=lambda component: component.name)
def test_a_layout_gives_back_bitwise_what_it_was_given(component):
    example = component.example
    arguments = dict(example if isinstance(example, Mapping) else example[0])
    projection = registry.load_component(component)([Same()], **arguments)
    outcomes = []

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(tensor_lists(dtypes=KEPT, one_dtype=True))
    def check(tensors):
        params = [torch.zeros_like(tensor).requires_grad_() for tensor in tensors]
        for param, tensor in zip(params, tensors, strict=True):
            param.grad = tensor
        try:
            Optimizer(params, projection).step()
        except ProjcoreError:  # it applies to none of these, for example
            outcomes.append(False)
            return
        outcomes.append(True)
        for param, tensor in zip(params, tensors, strict=True):
            torch.testing.assert_close(param.detach(), -tensor, rtol=0, atol=0)

    check()
    assert any(outcomes)
