"""Parameters stay where they are: views of one buffer, tied weights, odd strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.engine.plan import PASSES
from projcore.modules import LBFGS, LR, Adam, Backtracking, ClipNorm, HeavyBall
from projcore.projections import ScalarProjection, To, VectorProjection

CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam": lambda: [Adam(), LR(0.1)],
    "vector": lambda: [VectorProjection([ClipNorm(1.0), Adam(), LR(0.1)])],
    "scalar": lambda: [ScalarProjection([HeavyBall(0.9)]), LR(0.1)],
    "master": lambda: [To([Adam(), LR(0.1)], "float64", master=True)],
    "line search": lambda: [VectorProjection([LBFGS(), Backtracking()])],
}


def closure_of(
    params: list[Parameter], seen: list[list[int]] | None = None
) -> Callable[..., Tensor]:
    def closure(backward: bool = True) -> Tensor:
        if seen is not None:
            seen.append([param.data_ptr() for param in params])
        with torch.enable_grad():
            loss = torch.stack([(p - i - 1).pow(4).sum() for i, p in enumerate(params)]).sum()
        if backward:
            for param in params:
                param.grad = None
            loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("elide", [True, False])
def test_addresses_stay(chain: str, elide: bool, make: Any) -> None:
    params = make(dtype=torch.float32)
    before = [param.data_ptr() for param in params]
    optimizer = Optimizer(params, *CHAINS[chain]())
    optimizer._use_passes(PASSES if elide else frozenset())
    seen: list[list[int]] = []
    for _ in range(3):
        optimizer.step(closure_of(params, seen))
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure_of(params, seen))
    assert [param.data_ptr() for param in params] == before
    assert len(seen) >= 4
    assert all(places == before for places in seen)
    assert all(param.is_leaf and param.requires_grad for param in params)


def flat(shapes: list[tuple[int, ...]]) -> tuple[Tensor, list[Parameter]]:
    """Parameters that are views of one buffer, one after the other."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    buffer = torch.linspace(-1, 1, sum(sizes))
    pieces = zip(buffer.split(sizes), shapes, strict=True)
    return buffer, [Parameter(piece.view(shape)) for piece, shape in pieces]


@pytest.mark.parametrize("chain", CHAINS)
def test_parameters_that_are_views_of_one_buffer(chain: str) -> None:
    shapes = [(2, 3), (), (4,), (0,)]
    buffer, params = flat(shapes)
    apart = [Parameter(param.detach().clone()) for param in params]
    one, other = Optimizer(params, *CHAINS[chain]()), Optimizer(apart, *CHAINS[chain]())
    for _ in range(4):
        one.step(closure_of(params))
        other.step(closure_of(apart))
    assert all(map(torch.equal, params, apart))
    assert torch.equal(buffer, torch.cat([param.detach().reshape(-1) for param in apart]))


@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_that_are_views_of_one_bucket(chain: str) -> None:
    """As DDP keeps them; a step only reads them."""
    shapes = [(2, 3), (4,)]
    bucket, grads = flat(shapes)
    params = [Parameter(torch.ones(shape)) for shape in shapes]
    kept, places = bucket.clone(), [grad.data_ptr() for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.detach()
    optimizer = Optimizer(params, *CHAINS[chain]())
    for _ in range(2):
        optimizer.step(lambda: torch.zeros(()))
    assert torch.equal(bucket, kept)
    assert [p.grad.data_ptr() for p in params if p.grad is not None] == places


class Peek(Module):
    """Evaluates elsewhere, and goes on with the gradient it was given."""

    scope = "all"
    needs = frozenset({"closure", "params", "grads"})

    def __init__(self, seen: list[list[Tensor]]) -> None:
        self.seen = seen
        super().__init__()

    def step(self, update: list[Tensor], objective: Any, state: Any) -> list[Tensor]:
        kept = [tensor.clone() for tensor in update]
        points = [[param + scale for param in objective.params] for scale in (1.0, 2.0)]
        results = [objective.evaluate(point)[1] for point in points]
        copies = [[grad.clone() for grad in result] for result in results]
        self.seen.append(kept)
        assert all(map(torch.equal, kept, update))
        assert all(map(torch.equal, kept, objective.grads))
        for result, copy, point in zip(results, copies, points, strict=True):
            assert all(map(torch.equal, result, copy))
            assert all(torch.equal(grad, 2 * p) for grad, p in zip(result, point, strict=True))
        return update


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("wrap", [lambda m: [m], lambda m: [VectorProjection([m])]])
def test_evaluations_leave_the_gradients_alone(wrap: Any, in_place: bool, make: Any) -> None:
    """Also where the closure zeroes and fills them in place."""
    params, seen = make((3,), (2, 2)), []
    optimizer = Optimizer(params, *wrap(Peek(seen)), LR(0.25))

    def closure(backward: bool = True) -> Tensor:
        optimizer.zero_grad(set_to_none=not in_place)
        loss = torch.stack([p.square().sum() for p in params]).sum()
        if backward:
            loss.backward()
        return loss

    for _ in range(3):
        before = [param.detach().clone() for param in params]
        optimizer.step(closure)
        for param, start in zip(params, before, strict=True):
            assert torch.equal(param, start - start * 0.5)
            assert param.grad is not None
            assert torch.equal(param.grad, 2 * start)
    assert len(seen) == 3


@pytest.mark.parametrize("chain", CHAINS)
def test_tied_weights_are_one_parameter(chain: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    assert len(optimizer.param_groups[0]["params"]) == 3
    for _ in range(3):
        optimizer.step(closure_of(list(model.parameters())))
    assert model[1].weight is model[0].weight
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()


@pytest.mark.parametrize("chain", CHAINS)
def test_strides_do_not_matter(chain: str) -> None:
    values = torch.arange(24.0).reshape(1, 2, 3, 4)
    dense = [Parameter(values.clone()), Parameter(torch.eye(3))]
    odd = [
        Parameter(values.contiguous(memory_format=torch.channels_last)),
        Parameter(torch.eye(3).repeat_interleave(2, 1)[:, ::2]),
    ]
    assert not odd[0].is_contiguous()
    assert not odd[1].is_contiguous()
    strides = [param.stride() for param in odd]
    one, other = Optimizer(dense, *CHAINS[chain]()), Optimizer(odd, *CHAINS[chain]())
    for _ in range(3):
        one.step(closure_of(dense))
        other.step(closure_of(odd))
    for mine, theirs in zip(dense, odd, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=1e-7)  # sums in another order
    assert [param.stride() for param in odd] == strides
