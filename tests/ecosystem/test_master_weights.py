"""To(master=True): parameters of few bits move as those of many, rounded."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from projcore import Chain, Optimizer, errors
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, HeavyBall
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal
from projcore.testing.parts import Mix


def chain(dtype: str = "float32") -> To:
    return To([Adam(), LR(1e-4)], dtype, master=True)


def gradient(step: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(shape, generator=generator) + 2).to(dtype)  # representable in few bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrap", [lambda to: to, lambda to: VectorProjection([to])])
@pytest.mark.parametrize("passes", [PASSES, frozenset()], ids=["written", "update"])
def test_it_moves_as_the_float32_run_rounds(
    dtype: torch.dtype, wrap: Any, passes: frozenset[str]
) -> None:
    param, wide = Parameter(torch.ones(3, dtype=dtype)), Parameter(torch.ones(3))
    frozen = Parameter(torch.ones(3, dtype=dtype))
    master = Optimizer([param], wrap(chain()))
    master._use_passes(passes)
    reference = torch.optim.Adam([wide], lr=1e-4, foreach=False)
    without = Optimizer([frozen], To([Adam(), LR(1e-4)], "float32"))
    for step in range(200):
        grad = gradient(step, (3,), dtype)
        param.grad, frozen.grad, wide.grad = grad, grad.clone(), grad.float()
        for optimizer in (master, reference, without):
            optimizer.step()
        (kept,) = (v for k, v in master.state[param].items() if k.endswith("master"))
        assert torch.equal(param, kept.to(dtype))
        torch.testing.assert_close(kept, wide.detach(), rtol=1e-6, atol=0)
    assert bool((param < 0.99).all())
    assert dtype == torch.float16 or torch.equal(frozen, torch.ones(3, dtype=dtype))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    value=st.floats(-1e30, 1e30, allow_subnormal=False),
    update=st.floats(-1e30, 1e30, allow_subnormal=False),
    small=st.sampled_from([1.0, 1e-3, 1e-6]),
)
def test_the_parameter_is_always_the_rounded_master(
    value: float, update: float, small: float
) -> None:
    param = Parameter(torch.tensor([value, value, 1.0], dtype=torch.bfloat16))
    optimizer = Optimizer([param], To([LR(1.0)], "float32", master=True))
    kept = param.detach().float()
    for step in (update, update * small, small):
        param.grad = torch.tensor([step, value, step], dtype=torch.bfloat16)
        kept = kept - param.grad.float()
        optimizer.step()
        (master,) = optimizer.state[param].values()
        assert torch.equal(master, kept)
        assert torch.equal(param, kept.to(torch.bfloat16))


def test_a_change_from_outside_is_honoured() -> None:
    params = [Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = Optimizer(params, To([LR(1e-3)], "float32", master=True))

    def step() -> None:
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()

    step()
    with torch.no_grad():
        params[0][0] = 5.0
    step()
    first, second = (next(iter(optimizer.state[param].values())) for param in params)
    torch.testing.assert_close(first, torch.tensor([5.0 - 1e-3, 1 - 2e-3]), rtol=1e-7, atol=0)
    torch.testing.assert_close(second, torch.tensor([1 - 2e-3, 1 - 2e-3]), rtol=1e-7, atol=0)


def test_a_parameter_that_is_not_finite_stays_so() -> None:
    param = Parameter(torch.tensor([float("nan"), float("inf"), 1.0], dtype=torch.bfloat16))
    optimizer = Optimizer([param], To([LR(0.5)], "float32", master=True))
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert param[0].isnan()
    assert param[2] == 0.0


@pytest.mark.parametrize("wrap", [lambda to: [to], lambda to: [VectorProjection([to])]])
def test_resume_is_bitwise(wrap: Any) -> None:
    def build() -> tuple[list[Parameter], Optimizer]:
        params = [Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((3,), (2, 2))]
        return params, Optimizer(params, *wrap(chain()))

    def run(params: list[Parameter], optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for i, param in enumerate(params):
                param.grad = gradient(2 * step + i, tuple(param.shape), param.dtype)
            optimizer.step()

    params, optimizer = build()
    run(params, optimizer, range(30))
    file = io.BytesIO()
    torch.save([params, optimizer.state_dict()], file)
    file.seek(0)
    values, saved = torch.load(file, weights_only=True)
    others, other = build()
    with torch.no_grad():
        for param, value in zip(others, values, strict=True):
            param.copy_(value)
    other.load_state_dict(saved)
    for each in ((params, optimizer), (others, other)):
        run(*each, range(30, 60))
    assert all(map(torch.equal, params, others))
    for mine, theirs in zip(params, others, strict=True):
        for key, value in optimizer.state[mine].items():
            assert value.dtype == other.state[theirs][key].dtype
            assert torch.equal(value, other.state[theirs][key])
    assert optimizer.state[params[0]].keys() == other.state[others[0]].keys()


def test_complex_parameters_keep_a_complex_master() -> None:
    param = Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = Optimizer([param], To([HeavyBall(0.9), LR(1e-9)], "complex128", master=True))
    for _ in range(100):
        param.grad = torch.full_like(param, 1 + 1j)
        optimizer.step()
    (master,) = (v for k, v in optimizer.state[param].items() if k.endswith("master"))
    assert master.dtype == torch.complex128
    assert master.imag[0] < -8e-7
    assert torch.equal(param, master.to(torch.complex64))


FOLLOWED = {
    "in a row": lambda: [chain(), LR(0.1)],
    "in a chain": lambda: Chain(Chain(Adam(), chain()), LR(0.1)),
    "in a vector": lambda: [VectorProjection([Adam(), chain()]), LR(0.1)],
    "inside": lambda: VectorProjection([chain(), Adam()]),
    "twice": lambda: [chain(), chain("float64")],
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_nothing_may_follow(case: str) -> None:
    with pytest.raises(errors.ArgumentError, match=r"(?s)follows .*to\(.*Put .* inside it"):
        Optimizer([Parameter(torch.ones(2))], FOLLOWED[case]())


@pytest.mark.parametrize(
    "build",
    [lambda: To([chain()], "float64"), lambda: Mix([VectorProjection([chain()])])],
)
def test_no_map_that_computes_may_stand_around_it(build: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="must reach the parameters"):
        Optimizer([Parameter(torch.ones(2))], build())


def test_layouts_and_views_may(same: Any) -> None:
    results = []
    for build in (
        lambda: chain(),
        lambda: VectorProjection([ViewAsReal([ScalarProjection([chain()])])]),
    ):
        params = [Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((3,), ())]
        optimizer = Optimizer(params, build())
        for step in range(20):
            for param in params:
                param.grad = gradient(step, tuple(param.shape), param.dtype)
            optimizer.step()
        results.append([param.detach() for param in params])
    assert same(*results)
