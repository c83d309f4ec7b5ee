"""float16: transforms compute in float32, and what they return and remember is rounded once."""

import pytest
import torch

from projcore import Optimizer, Transform, Writer, blended
from projcore.projections import VectorProjection

HALF = torch.float16


class Divides(Transform):
    """Divides by the root of a running mean of squares; two counts, and what it saw last."""

    scope = "element"
    needs = frozenset({"params", "grads"})
    kinds = {"square": "second", "last": "first", "count": "scalar"}

    def init(self, tensor, settings):
        zeros = torch.zeros_like(tensor)
        return {"square": zeros, "last": zeros.clone(), "count": 0}

    def apply(self, tensors, params, grads, loss, states, settings):
        result = []
        for tensor, param, grad, state in zip(tensors, params, grads, states, strict=True):
            self.seen = {tensor.dtype, param.dtype, grad.dtype, state["square"].dtype}
            state["square"].mul_(0.9).addcmul_(tensor, tensor, value=0.1)  # in place
            state["last"] = tensor - state["last"]  # replaced
            state["count"] += 1
            result.append(tensor / (state["square"].sqrt() + 1e-8))
        return result


class Writes(Divides):
    """Writes parameters itself where it may."""

    def writer(self, targets):
        return ByUpdate(self)


class ByUpdate(Writer):
    kernel = "an update"

    def __init__(self, module):
        self.module = module

    def __call__(self, targets, blends, tensors, *facts):
        return blended(targets, self.module.apply(tensors, *facts), blends)


def optimizer_of(module, dtype, size):
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]).to(dtype))
    weight.grad = (size * torch.tensor([1.0, -1.0, 0.0])).to(HALF).to(dtype)
    return weight, Optimizer([weight], module, "lr(0.01)")


@pytest.mark.parametrize("module", [Divides(), Writes(), VectorProjection([Divides()])])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7])
def test_one_step_is_that_of_float32_rounded(module, size):
    half, first = optimizer_of(module, HALF, size)
    single, second = optimizer_of(module, torch.float32, size)
    first.step()
    second.step()
    # An update is rounded where it does not go straight into the parameters.
    torch.testing.assert_close(half.float(), single, rtol=1e-3, atol=0)
    assert half[2] == 3.0
    for name, value in second.state[single].items():
        mine = first.state[half][name]
        if isinstance(value, torch.Tensor):
            assert mine.dtype is HALF
            torch.testing.assert_close(mine, value.to(HALF), rtol=0, atol=0)
        else:
            assert mine == value == 1


def test_it_sees_nothing_but_float32():
    module = Divides()
    half, optimizer = optimizer_of(module, HALF, 1.0)
    optimizer.step()
    assert module.seen == {torch.float32}
    assert half.dtype is HALF


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_other_dtypes_are_as_they_are(dtype):
    module = Divides()
    _, optimizer = optimizer_of(module, dtype, 1.0)
    optimizer.step()
    assert module.seen == {dtype}


def test_memory_is_written_where_it_is():
    """What a transform writes in place keeps its place; what it replaces does not."""
    half, optimizer = optimizer_of(Divides(), HALF, 1.0)
    optimizer.step()
    kept = dict(optimizer.state[half])
    optimizer.step()
    (square,) = (value for name, value in kept.items() if name.endswith("square"))
    (again,) = (v for name, v in optimizer.state[half].items() if name.endswith("square"))
    assert again is square
    torch.testing.assert_close(square[0].float(), torch.tensor(0.19), rtol=1e-3, atol=0)


def test_a_failing_transform_leaves_memory_as_it_was():
    class Fails(Divides):
        def apply(self, tensors, *facts):
            result = super().apply(tensors, *facts)
            if facts[3][0]["count"] == 2:
                raise RuntimeError("twice")
            return result

    half, optimizer = optimizer_of(Fails(), HALF, 1.0)
    optimizer.step()
    kept = {k: v.clone() for k, v in optimizer.state[half].items() if isinstance(v, torch.Tensor)}
    before = half.detach().clone()
    with pytest.raises(RuntimeError, match="twice"):
        optimizer.step()
    assert torch.equal(half, before)
    for name, value in kept.items():
        assert torch.equal(optimizer.state[half][name], value)
