"""The end of a chain: what is folded into numbers, and modules that write parameters themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Blend, Optimizer, Transform, Write, Writer, blended
from projcore.modules import (
    LR,
    Adam,
    HeavyBall,
    Normalize,
    PolyakAveraging,
    Route,
    Scale,
    WeightDecay,
)
from projcore.projections import To, VectorProjection, ViewAsReal

SHAPES = [(4, 3), (5,), ()]


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in SHAPES:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        param.grad = torch.randn(shape, generator=generator, dtype=dtype)
        made.append(param)
    return made


class Wall(Transform):
    """Leaves the update as it is; not affine, so nothing before it is folded, nothing writes."""

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return tensors


class Noting(Transform):
    """The update times three, also by writing parameters itself; notes which it was asked for."""

    scope = "element"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        self.asked.append("apply")
        return [3 * tensor for tensor in tensors]

    def writer(self, targets: list[Tensor]) -> Writer:
        return Thrice(self.asked)


class Thrice(Writer):
    """Writes three times the update."""

    kernel = "three times the update"

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __call__(  # type: ignore[override]
        self, targets: list[Tensor], blends: list[Blend], tensors: list[Tensor], *_: Any
    ) -> list[Write]:
        self.asked.append("writer")
        return blended(targets, [3 * tensor for tensor in tensors], blends)


CHAINS: list[tuple[Any, ...]] = [
    (LR(0.1),),
    (HeavyBall(0.9), LR(0.1)),
    (WeightDecay(0.3), LR(0.1)),
    (Adam(), WeightDecay(0.3), Scale(-2.0), LR(0.1)),
    (HeavyBall(0.9), Scale(2.0), WeightDecay(0.3), LR(0.1), Scale(0.5)),
    (VectorProjection([HeavyBall(), Scale(0.5), WeightDecay(0.3)]), WeightDecay(0.1), LR(0.1)),
    (VectorProjection([VectorProjection([Adam(), Scale(0.5)]), WeightDecay(0.2)]), LR(0.1)),
    (VectorProjection([HeavyBall(), Normalize(), Scale(0.5)]), WeightDecay(0.1), LR(0.1)),
    (Noting(), WeightDecay(0.3), LR(0.1)),
]


@pytest.mark.parametrize("missing", [False, True], ids=["all", "one without a gradient"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_a_step_is_what_its_modules_say_one_after_the_other(
    chain: tuple[Any, ...], missing: bool
) -> None:
    results = []
    for modules in (chain, (*chain, Wall())):
        params = parameters()
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]
        if missing:
            params[1].grad = None
        optimizer = Optimizer(groups, *modules)
        for _ in range(3):
            optimizer.step()
        results.append([param.detach() for param in params])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-14)
    if missing:
        assert torch.equal(results[0][1], parameters()[1].detach())


@pytest.mark.parametrize(
    ("around", "asked"),
    [
        (lambda module: [module], "writer"),
        (lambda module: [module, WeightDecay(), LR(0.1)], "writer"),
        (lambda module: [Normalize(), module, LR(0.1)], "writer"),
        (lambda module: [VectorProjection([module, LR(0.1)])], "writer"),
        (lambda module: [VectorProjection([VectorProjection([module])]), LR(0.1)], "writer"),
        (lambda module: [module, HeavyBall(), LR(0.1)], "apply"),
        (lambda module: [VectorProjection([module, Normalize()]), LR(0.1)], "apply"),
        (lambda module: [module, LR(0.1), PolyakAveraging()], "writer"),
        (lambda module: [Route({"ndim==1": [HeavyBall()], "*": [module]}), LR(0.1)], "writer"),
        (lambda module: [To([module], dtype="float32", master=True)], "writer"),
        (lambda module: [ViewAsReal([module, LR(0.1)])], "writer"),
        (lambda module: [To([module], dtype="float32"), LR(0.1)], "writer"),
        (lambda module: [VectorProjection([module], project_update=False), LR(0.1)], "apply"),
    ],
)
def test_a_module_writes_where_only_affine_ones_follow(around: Any, asked: str) -> None:
    module = Noting()
    optimizer = Optimizer(parameters(), *around(module))
    optimizer.step()
    assert set(module.asked) == {asked}


def test_gradients_are_left_alone() -> None:
    params = parameters(torch.float32)
    before = [param.grad.clone() for param in params if param.grad is not None]
    Optimizer(params, Adam(), WeightDecay(), LR(0.1)).step()
    for param, grad in zip(params, before, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)


def test_autograd_sees_that_parameters_were_written() -> None:
    params = parameters(torch.float32)
    loss = sum((param * param).sum() for param in params)
    Optimizer(params, Adam(), LR(0.1)).step()
    assert all(param._version > 0 for param in params)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[union-attr]


def test_blends_of_their_own_are_written_at_once() -> None:
    targets = [torch.full((2,), 10.0) for _ in range(3)]
    update = [torch.full((2,), value) for value in (1.0, 2.0, 3.0)]
    writes = blended(targets, update, [Blend(), Blend(2.0, 0.1), Blend()])
    assert len(writes) == 1
    writes[0].run()
    assert [float(target[0]) for target in targets] == [9.0, 5.0, 7.0]
