"""Adam by torch's fused kernel: when it may be used, and that it is Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from projcore import Entries, Optimizer, Settings, Transform
from projcore.modules import LAMB, LR, Adam, AdamW, BiasCorrection, Route, WeightDecay
from projcore.projections import ScalarProjection, VectorProjection
from projcore_adaptive import _fused, adam
from projcore_adaptive.adam import adam_update

Launches = Callable[..., list[tuple[str, Any, Any]]]


class Shift(Transform):
    """Adds a tenth of the parameters to nothing of the update: a decay without a scale."""

    scope = "element"
    needs = frozenset({"params"})

    def apply(self, tensors: list[torch.Tensor], params: Any, *_: Any) -> list[torch.Tensor]:
        return [0.1 * param for param in params]

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(0.0, 0.1)] * len(states)


class Clip(Transform):
    """Bounds an update."""

    scope = "element"

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def apply(self, tensors: list[torch.Tensor], *_: Any) -> list[torch.Tensor]:
        if tensors[0].is_complex():
            return tensors
        return [tensor.clamp(-self.bound, self.bound) for tensor in tensors]


def test_the_fused_kernel_is_not_given_other_shapes() -> None:
    assert not _fused.can_fuse(torch.zeros(3, 4), torch.zeros(2, 4))
    assert not _fused.can_fuse(torch.zeros(3, 4), torch.zeros(4, 3).mT)
    assert _fused.can_fuse(torch.zeros(3, 4), torch.zeros(3, 4))
    assert not _fused.can_fuse(torch.zeros(3, dtype=torch.float16))
    assert not _fused.can_fuse(torch.zeros(3), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("mode", ["corrected", "hat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_the_operations_one_by_one_give(
    dtype: torch.dtype, mode: Any, correct: bool, monkeypatch: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,), (), (64,)]
    results = []
    for fused in (True, False):
        monkeypatch.setattr(adam, "can_fuse", (lambda *_: True) if fused else (lambda *_: False))
        generator.manual_seed(0)
        first = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        second = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        steps = [torch.tensor(count) for count in (0, 0, 3, 0)]  # one is ahead of the others
        for _ in range(5):
            tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
            before = [tensor.clone() for tensor in tensors]
            made = adam_update(tensors, first, second, None, steps, 0.9, 0.99, 1e-3, mode, correct)
            assert all(map(torch.equal, tensors, before))
        results.append([*made, *first, *second])
        assert [int(step) for step in steps] == [5, 5, 8, 5]
    tolerance = 1e-6 if dtype is torch.float32 else 1e-14
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_a_tensor_does_not_depend_on_its_companions() -> None:
    """One of strides, or of another dtype, goes another way; the others do not follow it."""

    def step(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        memory = [[torch.zeros_like(each) for each in tensors] for _ in range(2)]
        steps = [torch.tensor(0) for _ in tensors]
        return adam_update(tensors, *memory, None, steps, 0.9, 0.99, 1e-8)

    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(37, generator=generator)
    others = [
        torch.randn(5, 3, generator=generator).mT,
        torch.randn(4, generator=generator, dtype=torch.float64),
        torch.randn(4, generator=generator).bfloat16(),
    ]
    alone = step([plain])[0]
    for count in range(1, 4):
        assert torch.equal(step([*others[:count], plain])[-1], alone)


def problem(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3,), (), (64,)]
    made = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
    for param in made:
        param.grad = torch.randn(param.shape, generator=generator, dtype=dtype)
    return made


@pytest.mark.parametrize("modules", [(Adam(), WeightDecay(0.1)), (AdamW(weight_decay=0.1),)])
def test_a_step_is_torchs_fused_step(modules: Any) -> None:
    ours, theirs = problem(), problem()
    own = {"betas": (0.7, 0.8), "weight_decay": 0.3, "lr": 0.02}
    mine = Optimizer([{"params": ours[:2]}, {"params": ours[2:], **own}], *modules, LR(1e-2))
    groups: Any = [{"params": theirs[:2]}, {"params": theirs[2:], **own}]
    other = torch.optim.AdamW(groups, 1e-2, weight_decay=0.1, fused=True)
    for _ in range(5):
        mine.step()
        other.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7, 0.0])
def test_in_half_precision_a_step_is_torchs_fused_step(dtype: torch.dtype, size: float) -> None:
    """Computed in float32, parameters and moments rounded once."""
    ours, theirs = problem(dtype), problem(dtype)
    for param in (*ours, *theirs):
        assert param.grad is not None
        param.grad.mul_(size)
        param.grad.view(-1)[:1] = 0
    mine = Optimizer(ours, Adam(), WeightDecay(0.1), LR(1e-2))
    other = torch.optim.AdamW(theirs, 1e-2, weight_decay=0.1, fused=True)
    for _ in range(5):
        mine.step()
        other.step()
    rounding = torch.finfo(dtype).eps if dtype is torch.float16 else 0.0
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=rounding, atol=0)
        memory = mine.state[one]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                memory[f"0/{name}"], other.state[two][name], rtol=rounding, atol=rounding * 1e-4
            )


@pytest.mark.parametrize(
    ("modules", "settings"),
    [
        ((Adam(amsgrad=True), WeightDecay(0.1), LR(1e-2)), {}),
        ((Adam(), WeightDecay(0.1), LR(1e-2)), {"lr": 0.0}),
        ((Adam(), Shift(), LR(1e-2)), {}),
        ((AdamW(weight_decay=0.1), LR(1e-2)), {}),
        ((Adam(eps_mode="hat"), LR(1e-2)), {}),
        ((Adam(bias_correction=False), BiasCorrection(), WeightDecay(0.1), LR(1e-2)), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float64", "complex128", "strided"])
def test_what_is_written_is_what_is_returned(modules: Any, settings: Any, kind: str) -> None:
    """The last module is not affine, so that the second optimizer writes nothing itself."""
    results = []
    for end in ((), (Clip(1e9),)):
        params = problem(torch.complex128 if kind == "complex128" else torch.float64)
        if kind == "strided":
            params = [torch.nn.Parameter(param.detach().mT) for param in params if param.ndim == 2]
            for param in params:
                param.grad = torch.ones_like(param).cumsum(-1)
        optimizer = Optimizer(params, *modules, *end)
        for count in range(4):
            optimizer.param_groups[0].update(settings if count % 2 else {})
            optimizer.step()
            for param in params:
                assert param.grad is not None
                param.grad.mul_(0.3)
        results.append([param.detach() for param in params])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


def test_an_interrupt_behind_the_kernel_does_not_repeat_it(monkeypatch: Any) -> None:
    """As it may come in the Python that follows: the kernel alone raises no version."""
    expected, params = problem(), problem()
    Optimizer(expected, Adam(), LR(0.1)).step()

    def interrupted(tensors: list[torch.Tensor]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.autograd.graph, "increment_version", interrupted)
    optimizer = Optimizer(params, Adam(), LR(0.1))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    for one, two in zip(params, expected, strict=True):
        assert torch.equal(one, two)
    assert int(optimizer.state[params[0]]["0/step"]) == 1


@pytest.mark.parametrize(
    "modules",
    [
        (Adam(), LR(1e-3)),
        (AdamW(), LR(1e-3)),
        (Adam(amsgrad=True), WeightDecay(0.1), LR(1e-3)),
        (VectorProjection([Adam()]), LR(1e-3)),
        (ScalarProjection([Adam()]), LR(1e-3)),
        (Route({"ndim>=1": [Adam()]}), LR(1e-3)),
    ],
    ids=str,
)
def test_a_step_on_an_accelerator_is_two_launches(modules: Any, launches: Launches) -> None:
    assert [name for name, *_ in launches(*modules)] == ["fill_", "_fused_adamw_"]


def formula(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    largest: list[torch.Tensor],
    steps: list[torch.Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """Computes by the words of the paper what the kernel is to compute from its arguments."""
    assert (amsgrad, maximize) == (bool(largest), False)
    for i, (p, u, m, v, step) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True)
    ):
        m.mul_(beta1).add_(u, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(u, u, value=1 - beta2)
        if amsgrad:
            v = torch.maximum(largest[i], v, out=largest[i])
        count = float(step)
        root = (v / (1 - beta2**count)).sqrt().add_(eps)
        p.mul_(1 - lr * weight_decay).sub_(m / (1 - beta1**count) / root * lr)


@pytest.mark.parametrize(
    "modules",
    [
        (Adam(), WeightDecay(0.1), LR(1e-2)),
        (AdamW(weight_decay=0.1, amsgrad=True), LR(1e-2)),
        (Adam(eps_mode="hat"), LR(1e-2)),
        (Adam(bias_correction=False), LR(1e-2)),
        (LAMB(), LR(1e-2)),
    ],
    ids=str,
)
def test_any_kernel_of_that_formula_would_do(modules: Any, monkeypatch: Any) -> None:
    """All that it needs is in its arguments, when it is called."""
    results = []
    for name, stand_in in (("can_fuse", lambda *_: False), ("_fused_adamw_", formula)):
        params = [*problem(torch.float64), *problem(torch.float32)]
        late, *others = params
        optimizer = Optimizer([{"params": others}, {"params": [late], "lr": 0.1}], *modules)
        late.grad, grad = None, late.grad
        with monkeypatch.context() as patch:
            patch.setattr(torch if name == "_fused_adamw_" else adam, name, stand_in)
            for _ in range(4):
                optimizer.step()
                late.grad = grad  # so that its count is behind
        results.append([param.detach() for param in params])
    for mine, theirs in zip(*results, strict=True):
        bound = 1e-6 if mine.dtype is torch.float32 else 1e-13
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound)


def test_each_device_has_a_call_and_a_count_of_its_own(launches: Launches) -> None:
    calls = launches(AdamW(), LR(1e-3), devices=("cuda:0", "cuda:1"))
    assert [name for name, *_ in calls] == ["fill_", "_fused_adamw_"] * 2
    used = []
    for (_, (filled, _), _), (_, lists, _) in zip(*[iter(calls)] * 2, strict=True):
        params, *memory, largest, steps = lists
        assert [len(each) for each in (params, *memory, largest, steps)] == [3, 3, 3, 3, 0, 3]
        assert {each.device for each in (*params, *steps)} == {filled.device}
        assert {id(each) for each in steps} == {id(filled)}  # the kernel only reads it
        assert filled.dtype is torch.float32  # as which the kernel reads it
        used.append(filled.device)
    assert used == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_a_direction_on_an_accelerator_is_three_launches(launches: Launches) -> None:
    names = [name for name, *_ in launches(LAMB(), LR(1e-3))]
    assert names[:3] == ["_foreach_zero_", "fill_", "_fused_adamw_"]


def test_a_device_without_the_kernel_is_not_given_to_it() -> None:
    meta = torch.zeros(3, 4, device="meta")
    assert not _fused.can_fuse(meta, meta)
    assert not _fused.can_fuse(torch.zeros(3, 4), meta)
