"""Low-rank subspaces against dense formulas, and what they promise beside the laws."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer, Transform
from projcore.errors import ArgumentError, StepError
from projcore.modules import LBFGS, LR, Adam, ClipNorm, Scale, StrongWolfe, WeightDecay
from projcore.projections import VectorProjection
from projcore_lowrank import Basis, GaLore, LowRank

SHAPES = [(6, 9), (9, 6), (5, 5), (4,), (3, 2, 2)]
RULES: list[dict[str, Any]] = [
    {"combine": "unproject", "scale": 0.5},
    {"combine": "residual", "residual_scale": 0.3, "scale": 2.0},
    {"combine": "sign", "residual_scale": 0.3},
    {"combine": "fira", "scale": 0.25},
    {"combine": "fira", "limit": None},
    {"combine": "apollo", "scale": 0.5},
    {"combine": "apollo_mini", "limit": None, "scale": 4.0},
]


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def give_gradients(params: list[Parameter]) -> None:
    for i, param in enumerate(params):
        param.grad = torch.sin((i + 1) * param.detach()) + 0.1 * param.detach()


def train(steps: int, *modules: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    params = parameters(dtype)
    optimizer = Optimizer(params, *modules)
    for _ in range(steps):
        give_gradients(params)
        optimizer.step()
    return [param.detach() for param in params]


def assert_equal_lists(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-12) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", ["std", "left", "right", "full"])
@pytest.mark.parametrize("refresh", ["svd", "gram", "randomized", "subspace", "subspace_whole"])
def test_of_full_rank_gradient_descent_inside_is_gradient_descent(side: Any, refresh: Any) -> None:
    made = LowRank([LR(0.1)], rank=1.0, period=2, side=side, refresh=refresh)
    short = [i for i, shape in enumerate(SHAPES) if side == "std" or i not in (0, 1, 4)]
    if side in ("left", "right", "full"):  # only the shorter side is complete
        short += {"left": [0, 4], "right": [1], "full": []}[side]
    actual, expected = train(5, made), train(5, LR(0.1))
    for i in set(short) - ({4} if side == "left" else set()):
        torch.testing.assert_close(actual[i], expected[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("side", ["std", "reverse_std"])
def test_what_is_written_is_what_combine_makes(
    rule: dict[str, Any], side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_rank = LowRank([Adam()], rank=2, period=3, side=side, **rule)
    modules = [low_rank, Scale(0.7), WeightDecay(0.1), LR(0.05), WeightDecay(0.01)]
    written = train(8, *modules)
    monkeypatch.setattr(LowRank, "writer", lambda self, targets: "for the comparison")
    assert_equal_lists(written, train(8, *modules))


def dense(rule: dict[str, Any], full: Tensor, basis: Tensor, out: Tensor, before: Tensor) -> Any:
    """An update as published, for a basis on the left: every residual is formed."""
    low = basis.T @ full
    alpha = rule.get("scale", 1.0)
    name = rule["combine"]
    limit = rule.get("limit", 1.01)
    if name == "unproject":
        return alpha * basis @ out, before
    if name in ("residual", "sign"):
        rest = full - basis @ low
        rest = rest.sign() if name == "sign" else rest
        return alpha * basis @ out + rule["residual_scale"] * rest, before
    if name == "apollo_mini":
        scaled = full * (out.norm() / (low.norm() + 1e-8))
    else:
        channel = out.norm(dim=0) / (low.norm(dim=0) + 1e-8)
        rest = full - alpha * basis @ low if name == "fira" else full
        scaled = rest * channel
    norm = scaled.norm()
    if limit is not None:
        if before > 0:
            divisor = torch.clamp(norm / (before + 1e-8), min=limit) / limit
            scaled = scaled / divisor
        norm = scaled.norm()
    return (alpha * basis @ out + scaled if name == "fira" else alpha * scaled), norm


class Tilt(Transform):
    """Something that is no multiple of what it gets."""

    scope = "element"

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [torch.atan(3 * tensor) for tensor in tensors]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_updates_are_the_published_formulas(rule: dict[str, Any]) -> None:
    weight = Parameter(torch.randn(5, 8, dtype=torch.float64))
    optimizer = Optimizer([weight], LowRank([Tilt()], rank=2, period=3, refresh="svd", **rule))
    point, before = weight.detach().clone(), torch.zeros(())
    basis = torch.empty(0)
    for step in range(7):
        full = torch.sin(2 * point) * (0.1 + 0.05 * step)
        if step % 3 == 0:
            basis = torch.linalg.svd(full).U[:, :2]
        update, before = dense(rule, full, basis, torch.atan(3 * basis.T @ full), before)
        point = point - update
        weight.grad = torch.sin(2 * weight.detach()) * (0.1 + 0.05 * step)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), point, rtol=1e-10, atol=1e-10)


def test_the_right_side_is_the_left_one_of_the_transpose() -> None:
    for rule in RULES:
        weight = torch.randn(4, 7, dtype=torch.float64)
        ends = []
        for turned in (False, True):
            param = Parameter(weight.T.clone() if turned else weight.clone())
            side: Any = "right" if turned else "left"
            made = LowRank([Adam()], rank=2, period=2, side=side, refresh="svd", **rule)
            optimizer = Optimizer([param], made, LR(0.1))
            for _ in range(3):  # the next refresh may turn columns, which Adam sees
                param.grad = torch.cos(param.detach())
                optimizer.step()
                if optimizer.state[param]["0/step"] == 2:
                    break
            ends.append(param.detach().T if turned else param.detach())
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


def test_square_matrices_are_compressed_from_the_right() -> None:
    weight = Parameter(torch.randn(4, 4))
    for side, entry in (("std", "right"), ("reverse_std", "left")):
        optimizer = Optimizer([weight], LowRank([LR(0.1)], rank=2, side=side))  # type: ignore[arg-type]
        weight.grad = torch.randn(4, 4)
        optimizer.step()
        assert f"0/{entry}" in optimizer.state[weight]


@pytest.mark.parametrize("refresh", ["svd", "gram", "randomized", "subspace", "subspace_whole"])
def test_memory_is_what_the_formula_says(refresh: Any) -> None:
    weight = Parameter(torch.randn(30, 50))
    optimizer = Optimizer([weight], LowRank([Adam()], rank=4, refresh=refresh), LR(0.1))
    estimated = optimizer.memory()
    weight.grad = torch.randn(30, 50)
    optimizer.step()
    counted = optimizer.memory()
    assert counted.state == estimated.state == 4 * (30 * 4 + 2 * 4 * 50) + 8
    assert not any(row.unused for row in counted.rows)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, made.numel())
        return result


@pytest.mark.parametrize("side", ["std", "reverse_std", "full"])
def test_the_full_update_is_never_made(side: Any) -> None:
    params = [Parameter(torch.randn(shape)) for shape in [(40, 60), (60, 40), (40, 40)]]
    optimizer = Optimizer(params, LowRank([Adam()], rank=4, side=side), WeightDecay(0.1), LR(0.1))
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        with Largest() as largest:
            optimizer.step()
    # The last step is between refreshes but for those that are staggered.
    with Largest() as largest:
        optimizer.step()
    assert 0 < largest.elements <= 4 * 60


@pytest.mark.parametrize("policy", ["keep", "transport", "reset"])
def test_a_new_rank_acts_in_the_next_step(policy: Any) -> None:
    weight = Parameter(torch.randn(6, 9, dtype=torch.float64))
    optimizer = Optimizer([weight], LowRank([Adam()], rank=2, period=100, policy=policy), LR(0.1))
    for rank in (2, 2, 4, 4, 3, 3):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = torch.sin(weight.detach())
        before = copy.deepcopy(dict(optimizer.state.get(weight, {})))
        optimizer.step()
        state = optimizer.state[weight]
        assert state["0/left"].shape == (6, rank)
        assert state["0/modules/0/exp_avg"].shape == (rank, 9)
        restarted = policy == "reset" and before and before["0/left"].shape[1] != rank
        assert state["0/modules/0/step"] == (1 if restarted or not before else
                                             before["0/modules/0/step"] + 1)  # fmt: skip


def test_kept_memory_is_transported_when_the_rank_changes() -> None:
    weight = Parameter(torch.randn(6, 9, dtype=torch.float64))
    optimizer = Optimizer([weight], LowRank([Adam()], rank=2, period=100), LR(0.1))
    for rank in (2, 4):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = torch.sin(weight.detach())
        old = dict(optimizer.state.get(weight, {}))
        old = {key: value.clone() for key, value in old.items() if isinstance(value, Tensor)}
        optimizer.step()
    new = optimizer.state[weight]
    change = new["0/left"].T @ old["0/left"]
    low = new["0/left"].T @ weight.grad
    expected = 0.9 * change @ old["0/modules/0/exp_avg"] + 0.1 * low
    torch.testing.assert_close(new["0/modules/0/exp_avg"], expected)
    squared = 0.999 * change.square() @ old["0/modules/0/exp_avg_sq"] + 0.001 * low.square()
    torch.testing.assert_close(new["0/modules/0/exp_avg_sq"], squared)


def test_resuming_across_a_change_of_rank_is_bitwise() -> None:
    def build(weight: Parameter) -> Optimizer:
        made = LowRank([Adam()], rank=2, period=3, policy="transport", combine="fira")
        return Optimizer([weight], made, LR(0.1))

    def step(optimizer: Optimizer, weight: Parameter, count: int) -> None:
        for _ in range(count):
            weight.grad = torch.sin(3 * weight.detach())
            optimizer.step()

    start = torch.randn(6, 9)
    one = Parameter(start.clone())
    whole = build(one)
    step(whole, one, 4)
    whole.param_groups[0]["rank"] = 5
    step(whole, one, 1)
    saved, point = copy.deepcopy(whole.state_dict()), one.detach().clone()
    step(whole, one, 4)
    other = Parameter(point)
    resumed = build(other)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["rank"] == 5
    step(resumed, other, 4)
    assert torch.equal(one, other)


def test_infinite_gradients_never_enter_a_basis() -> None:
    weight = Parameter(torch.randn(6, 9))
    optimizer = Optimizer([weight], LowRank([Adam()], rank=2, period=2), LR(0.1))
    for _ in range(2):
        weight.grad = torch.randn(6, 9)
        optimizer.step()
    before = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    weight.grad = torch.full((6, 9), torch.inf)
    with pytest.raises(StepError, match=r"LowRank .* shape \(6, 9\) .* Inf or NaN"):
        optimizer.step()
    assert torch.equal(weight, before[0])
    after = optimizer.state_dict()["state"][0]
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[k]))
               for k, v in before[1]["state"][0].items())  # fmt: skip


def test_with_skip_a_basis_stays_and_is_learnt_in_the_next_step() -> None:
    weight = Parameter(torch.randn(6, 9))
    made = LowRank([Nothing()], rank=2, period=2, nonfinite="skip", stagger=False)
    optimizer = Optimizer([weight], made, LR(0.1))
    bases = []
    for step in range(4):
        weight.grad = torch.full((6, 9), torch.nan) if step == 2 else torch.randn(6, 9)
        optimizer.step()
        bases.append(optimizer.state[weight]["0/left"].clone())
    assert torch.equal(bases[0], bases[1])
    assert torch.equal(bases[1], bases[2])
    assert not torch.equal(bases[2], bases[3])
    assert torch.isfinite(bases[3]).all()


class Nothing(Transform):
    """Returns zeros, whatever comes."""

    scope = "element"

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return [torch.zeros_like(tensor) for tensor in tensors]


def test_refreshes_are_spread_over_the_period() -> None:
    params = [Parameter(torch.randn(5, 7)) for _ in range(5)]
    optimizer = Optimizer(params, LowRank([LR(0.1)], rank=2, period=5))
    changes = []
    for _ in range(8):
        old = [optimizer.state.get(p, {}).get("0/left") for p in params]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        new = [optimizer.state[p]["0/left"] for p in params]
        pairs = zip(old, new, strict=True)
        changes.append(sum(a is None or not torch.equal(a, b) for a, b in pairs))
    assert changes == [5, 1, 1, 1, 1, 1, 1, 1]


def test_a_line_search_inside_stays_on_the_plane_and_descends() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    model.double()
    inputs = torch.randn(40, 9, dtype=torch.float64)
    targets = torch.randn(40, 3, dtype=torch.float64)
    made = LowRank([LBFGS(), StrongWolfe()], rank=2, period=10_000, side="left")
    optimizer = Optimizer([p for p in model.parameters() if p.ndim == 2], made)
    start = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(15)]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.95 * losses[0]
    for param, origin in zip(optimizer.param_groups[0]["params"], start, strict=True):
        basis = optimizer.state[param]["0/left"]
        moved = param.detach() - origin
        torch.testing.assert_close(basis @ (basis.T @ moved), moved, rtol=1e-9, atol=1e-10)


class Interrupted(TorchDispatchMode):
    """Raises in place of some of the products that write parameters."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self.at, self.times, self.count = at, times, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += "addmm_" in str(func)
        if "addmm_" in str(func) and self.at <= self.count < self.at + self.times:
            raise KeyboardInterrupt if self.times == 1 else RuntimeError("no memory")
        return func(*args, **(kwargs or {}))


def three() -> tuple[list[Parameter], Optimizer]:
    """Three parameters and their optimizer, two steps on."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(4, 6, generator=generator)) for _ in range(3)]
    optimizer = Optimizer(params, LowRank([Adam()], rank=2, period=2), LR(0.1))
    for _ in range(2):
        step(params, optimizer)
    return params, optimizer


def step(params: list[Parameter], optimizer: Optimizer) -> None:
    for param in params:
        param.grad = torch.cos(param.detach())
    optimizer.step()


def assert_same(one: Any, other: Any) -> None:
    (params, optimizer), (others, another) = one, other
    assert all(map(torch.equal, params, others))
    for i, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            theirs = another.state_dict()["state"][i][key]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs)), key


@pytest.mark.parametrize("at", [2, 3])
def test_a_step_that_is_interrupted_while_it_writes_is_finished(at: int) -> None:
    one, other = three(), three()
    step(*one)
    with pytest.raises(KeyboardInterrupt), Interrupted(at):
        step(*other)
    assert_same(one, other)
    step(*one)
    step(*other)
    assert_same(one, other)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_right_behind_a_write_does_not_repeat_it(at: int, monkeypatch: Any) -> None:
    one, other = three(), three()
    step(*one)
    add, count = Basis.add_up_, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal count
        add(*arguments)
        count += 1
        if count == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Basis, "add_up_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(*other)
    assert_same(one, other)


def test_what_fails_twice_while_it_writes_is_told() -> None:
    with pytest.raises(StepError, match="write parameters, 1 had run"), Interrupted(2, times=2):
        step(*three())


def test_nothing_is_written_if_the_first_write_fails() -> None:
    params, optimizer = three()
    before = [param.detach().clone() for param in params]
    with pytest.raises(KeyboardInterrupt), Interrupted(1):
        step(params, optimizer)
    assert all(map(torch.equal, params, before))


def test_galore_is_low_rank_as_published() -> None:
    published = {"rank": 2, "period": 3, "scale": 0.25, "refresh": "svd", "stagger": False}
    one = train(7, GaLore([Adam()], rank=2, period=3), LR(0.1))
    other = train(7, LowRank([Adam()], **published), LR(0.1))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_in_bfloat16_are_near(dtype: torch.dtype) -> None:
    rough = LowRank([Scale(1.0)], rank=2, period=100, compute_dtype="bfloat16")
    exact = LowRank([Scale(1.0)], rank=2, period=100)
    for mine, theirs in zip(
        train(3, rough, LR(0.1), dtype=dtype), train(3, exact, LR(0.1), dtype=dtype), strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"period": 0}, "period=0"),
        ({"side": "top"}, "side='top'"),
        ({"combine": "fira", "side": "full"}, "combine=fira.*side='full'"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"limit": 0.5}, "limit=0.5"),
        ({"compute_dtype": "int8"}, "compute_dtype='int8'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises((ArgumentError, TypeError), match=text.replace("(", r"\(")):
        LowRank([LR(0.1)], **arguments)


def test_a_subspace_that_applies_to_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="applies to none of its 1 tensors"):
        Optimizer([Parameter(torch.zeros(5))], LowRank([LR(0.1)], rank=2))


@pytest.mark.parametrize("inside", [[Adam()], [VectorProjection([ClipNorm(1.0), Adam()])]], ids=str)
def test_a_tensor_may_pass_from_some_step_on_and_be_projected_again(inside: list[Any]) -> None:
    weights = [Parameter(torch.randn(20, 30)) for _ in range(2)]
    groups = [{"params": [weights[0]], "rank": 4}, {"params": [weights[1]], "rank": 3}]
    optimizer = Optimizer(groups, LowRank(inside), LR(1e-2))
    shapes = []
    for rank in (4, None, None, 4):
        optimizer.param_groups[0]["rank"] = rank
        for weight in weights:
            weight.grad = torch.sin(weight.detach())
        optimizer.step()
        shapes.append({tuple(v.shape) for k, v in optimizer.state[weights[0]].items()
                       if k.endswith("exp_avg")})  # fmt: skip
        assert ("0/left" in optimizer.state[weights[0]]) == (rank is not None)
    if len(inside) == 1 and isinstance(inside[0], Adam):
        assert shapes == [{(4, 30)}, {(20, 30)}, {(20, 30)}, {(4, 30)}]
        assert optimizer.state[weights[0]]["0/modules/0/step"] == 1  # anew
        assert optimizer.state[weights[1]]["0/modules/0/step"] == 4


@pytest.mark.parametrize("second", ["squared", "absolute", "keep"])
def test_complex_second_moments_stay_pairs_of_variances(second: Any) -> None:
    weight = Parameter(torch.randn(6, 9, dtype=torch.complex64))
    made = LowRank([Adam()], rank=2, period=1, policy="transport", second=second)
    optimizer = Optimizer([weight], made, LR(0.1))
    for _ in range(4):
        weight.grad = torch.sin(weight.detach())
        optimizer.step()
        variance = torch.view_as_real(optimizer.state[weight]["0/modules/0/exp_avg_sq"])
        assert bool((variance >= 0).all())


@pytest.mark.parametrize("rule", ["fira", "apollo", "apollo_mini"])
def test_norms_are_those_of_the_update_also_if_the_gradient_is_projected(rule: Any) -> None:
    results = []
    for hands_in_update in (True, False):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
        inside = LowRank([Adam()], rank=2, combine=rule, project_update=hands_in_update)
        optimizer = Optimizer([weight], inside, LR(0.1))
        for _ in range(4):
            weight.grad = torch.randn(6, 4, generator=generator, dtype=torch.float64)
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-14)
