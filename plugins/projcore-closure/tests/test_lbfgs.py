from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, OnRefresh, Optimizer, ProjectionBase
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LBFGS, LR, Backtracking, StrongWolfe
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal
from projcore_closure.lbfgs import two_loop

PLACES: dict[str, Any] = {
    "bare": lambda *modules: list(modules),
    "vector": lambda *modules: [VectorProjection(modules)],
    "scalar": lambda *modules: [ScalarProjection(modules)],
    "to": lambda *modules: [To(modules, "float64")],
    "vector in to": lambda *modules: [To([VectorProjection(modules)], "float64")],
    "to in vector": lambda *modules: [VectorProjection([To(modules, "float64")])],
    "vector in vector": lambda *modules: [VectorProjection([VectorProjection(modules)])],
}


def distance(ones, others) -> float:
    one, other = (torch.cat([t.detach().reshape(-1) for t in ts]) for ts in (ones, others))
    return float((one - other).norm() / other.norm())


def entries(optimizer: Optimizer, name: str) -> list[Any]:
    """All entries of that name in an optimizer's memory."""
    found = [memory.items() for memory in optimizer.state.values()]
    return [value for items in found for key, value in items if key.split("/")[-1] == name]


def dense_inverse_hessian(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The BFGS formula as it is written, pair by pair, the oldest first."""
    s, y = pairs[-1]
    eye = torch.eye(s.numel(), dtype=s.dtype)
    inverse = (y @ s) / (y @ y) * eye
    for s, y in pairs:
        rho = 1 / (y @ s)
        left = eye - rho * torch.outer(s, y)
        inverse = left @ inverse @ left.T + rho * torch.outer(s, s)
    return inverse


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_two_loop_is_the_bfgs_formula(count):
    torch.manual_seed(count)
    root = torch.randn(11, 11, dtype=torch.float64)
    steps = [torch.randn(11, dtype=torch.float64) for _ in range(count)]
    pairs = [(s, (root @ root.T + torch.eye(11)) @ s) for s in steps]
    update = torch.randn(11, dtype=torch.float64)
    given = update.clone()
    expected = dense_inverse_hessian(pairs) @ update
    split = [([s[:4], s[4:]], [y[:4], y[4:]]) for s, y in reversed(pairs)]
    result = two_loop([update[:4], update[4:]], split, 1e-10)
    assert result is not None
    torch.testing.assert_close(torch.cat(result), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(update, given)


@pytest.mark.parametrize("row", [0, 1, 2, slice(3)])
@pytest.mark.parametrize("factor", [-1.0, 1e-17])
def test_pairs_that_do_not_curve_upward_are_left_out(make, row, factor):
    """As those that a change of basis made so, one or all: they are as if they were zero."""
    ends = []
    for factors in ((factor, abs(factor)), (0.0, 0.0)):
        problem = make([(9,)])
        optimizer = Optimizer(problem.params, LBFGS(history_size=5), LR(1.0))
        for _ in range(4):
            optimizer.step(problem.closure)
        for name, each in zip(("changes", "steps"), factors, strict=True):
            (history,) = entries(optimizer, name)
            assert history[row].all()
            history[row] *= each
        optimizer.step(problem.closure)
        ends.append(problem.point())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("place", "history_size", "lr"),
    [
        *((place, 20, 1.0) for place in PLACES),
        ("bare", 1, 0.5),
        ("bare", 100, 0.2),
        ("vector", 4, 1.0),
    ],
)
def test_follows_torch(make, place, history_size, lr):
    ours, theirs = make(), make()
    optimizer = Optimizer(ours.params, *PLACES[place](LBFGS(history_size=history_size)), LR(lr))
    reference = torch.optim.LBFGS(
        theirs.params,
        lr=lr,
        max_iter=1,
        history_size=history_size,
        tolerance_grad=0,
        tolerance_change=0,
    )
    for _ in range(50):
        optimizer.step(ours.closure)
        reference.step(theirs.closure)
        assert distance(ours.params, theirs.params) < 1e-13


@pytest.mark.parametrize("history_size", [2, 100])
def test_follows_torch_with_a_line_search(make, history_size):
    """Step by step, evaluations counted, until losses differ by rounding only.

    Both searches find steps in the same way, but near the ends of a bracket; here none is there.
    """
    searched = 0
    for seed in range(1, 7):
        generator = torch.Generator().manual_seed(seed)
        start = [torch.randn(s, dtype=torch.float64, generator=generator) for s in ((4, 3), (9,))]
        ours, theirs = make(tensors=start), make(tensors=start)
        optimizer = Optimizer(
            ours.params, VectorProjection([LBFGS(history_size=history_size), StrongWolfe()])
        )
        reference = torch.optim.LBFGS(
            theirs.params,
            lr=1,
            max_iter=1,
            max_eval=100,
            history_size=history_size,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        for _ in range(18):
            calls = ours.calls
            loss = optimizer.step(ours.closure)
            assert abs(loss - reference.step(theirs.closure)) < 1e-11
            assert ours.calls == theirs.calls
            assert distance(ours.params, theirs.params) < 1e-9
            searched += ours.calls - calls > 2
    assert searched > 5  # at so many steps the first try was not enough


def test_follows_torch_in_float32(make):
    ours, theirs = make(dtype=torch.float32), make(dtype=torch.float32)
    optimizer = Optimizer(ours.params, LBFGS())
    reference = torch.optim.LBFGS(theirs.params, lr=1, max_iter=1, tolerance_grad=0)
    for _ in range(12):
        optimizer.step(ours.closure)
        reference.step(theirs.closure)
        assert distance(ours.params, theirs.params) < 1e-5


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_does_the_same_in_every_place(make, place, search):
    bare, placed = make(), make()
    one = Optimizer(bare.params, LBFGS(history_size=6), search())
    other = Optimizer(placed.params, *PLACES[place](LBFGS(history_size=6), search()))
    for _ in range(15):
        one.step(bare.closure)
        other.step(placed.closure)
        assert distance(placed.params, bare.params) < 1e-10
    assert placed.calls == bare.calls


@pytest.mark.parametrize(
    ("place", "search"), [*((place, StrongWolfe) for place in PLACES), ("vector", Backtracking)]
)
def test_minimises_rosenbrock(place, search):
    params = [Parameter(torch.tensor([-1.2], dtype=torch.float64)) for _ in range(2)]
    with torch.no_grad():
        params[1].fill_(1.0)
    optimizer = Optimizer(params, *PLACES[place](LBFGS(), search()))

    def closure():
        optimizer.zero_grad()
        x, y = params
        loss = ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(45)]
    assert losses[-1] < 1e-10
    assert losses == sorted(losses, reverse=True)


def test_minimises_rosenbrock_in_float32_with_float64_inside():
    weight = Parameter(torch.tensor([-1.2, 1.0]))
    optimizer = Optimizer([weight], To([VectorProjection([LBFGS(), StrongWolfe()])], "float64"))

    def closure():
        optimizer.zero_grad()
        loss = (1 - weight[0]) ** 2 + 100 * (weight[1] - weight[0] ** 2) ** 2
        loss.backward()
        return loss.detach()

    assert min(float(optimizer.step(closure)) for _ in range(60)) < 1e-10


def test_first_direction_is_scaled():
    for size, expected in ((10.0, 1 / 30), (0.1, 1.0)):
        weight = Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = Optimizer([weight], LBFGS())
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, -size * expected))


def test_keeps_only_pairs_of_enough_curvature():
    weight = Parameter(torch.full((3,), 10.0, dtype=torch.float64))
    optimizer = Optimizer([weight], LBFGS(min_curvature=0.5))
    # y's times s: 0, 0.8, 0.02.., 0.6..
    for grad, pairs in ((1.0, 0), (1.0, 0), (0.2, 1), (0.1, 1), (-5.0, 2)):
        weight.grad = torch.full_like(weight, grad)
        optimizer.step()
        assert [int(count) for count in entries(optimizer, "pairs")] == [pairs]


def test_a_gradient_that_is_not_finite_leaves_no_pair():
    weight = Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = Optimizer([weight], LBFGS())
    for i, grad in enumerate((1.0, float("inf"), 2.0, float("nan"), 3.0, 4.0)):
        with torch.no_grad():
            weight.fill_(i)
        weight.grad = torch.full_like(weight, grad)
        optimizer.step()
        assert [int(count) for count in entries(optimizer, "pairs")] == [int(i == 5)]
    assert torch.isfinite(weight).all()


def test_complex_parameters_are_pairs_of_reals(make):
    start = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tail = torch.ones(3, dtype=torch.float64)
    problems = [make(tensors=[start, tail])]
    problems += [make(tensors=[torch.view_as_complex(start), tail]) for _ in range(2)]
    modules = [LBFGS(history_size=5), StrongWolfe()]
    optimizers = [
        Optimizer(problems[0].params, *modules),
        Optimizer(problems[1].params, *modules),
        Optimizer(problems[2].params, ViewAsReal(modules)),
    ]
    for _ in range(15):
        for optimizer, problem in zip(optimizers, problems, strict=True):
            optimizer.step(problem.closure)
        for problem in problems[1:]:
            weight = torch.view_as_real(problem.params[0].detach())
            torch.testing.assert_close(weight, problems[0].point()[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_and_strides(make, dtype):
    plain = [torch.linspace(-2, 2, 12, dtype=dtype).view(3, 4), torch.ones(2, 3, 2, 2, dtype=dtype)]
    strided = [plain[0].t().contiguous().t(), plain[1].to(memory_format=torch.channels_last)]
    one, other = make(tensors=plain), make(tensors=strided)
    assert other.params[0].stride() != one.params[0].stride()
    optimizers = [Optimizer(p.params, LBFGS(history_size=3), StrongWolfe()) for p in (one, other)]
    losses = []
    for _ in range(8):
        losses.append(float(optimizers[0].step(one.closure)))
        optimizers[1].step(other.closure)
        for a, b in zip(one.params, other.params, strict=True):
            assert torch.equal(a, b)
    assert losses[-1] < losses[0] - 1
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
def test_a_parameter_that_is_frozen_counts_as_zero_gradient(make, search):
    """Frozen at step 4, and again free at step 8; bare equals the vector, and it never moves."""
    bare, merged = make(), make()
    optimizers = [
        Optimizer(bare.params, LBFGS(history_size=4), search()),
        Optimizer(merged.params, VectorProjection([LBFGS(history_size=4), search()])),
    ]
    for i in range(16):
        for problem, optimizer in zip((bare, merged), optimizers, strict=True):
            problem.params[0].requires_grad_(not 4 <= i < 8)
            before = problem.point()
            loss = optimizer.step(problem.closure)
            assert torch.equal(before[0], problem.params[0]) == (4 <= i < 8)
            assert problem.loss(problem.point()) < loss
        assert distance(merged.params, bare.params) < 1e-10
    assert next(int(count) for count in entries(optimizers[0], "pairs")) > 10


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
def test_what_an_update_holds_for_a_frozen_parameter_is_no_matter(make, search):
    class Spoil(Module):
        def step(self, update, objective, state):
            if objective.active is None:
                return update
            return [torch.full_like(update[0], torch.nan), *update[1:]]

    problem = make()
    optimizer = Optimizer(problem.params, Spoil(), LBFGS(history_size=4), Spoil(), search())
    optimizer.step(problem.closure)
    problem.params[0].requires_grad_(False)
    for _ in range(5):
        assert optimizer.step(problem.closure) > problem.loss(problem.point())


@pytest.mark.parametrize("place", ["bare", "vector", "to in vector"])
def test_a_group_added_late_begins_anew(make, place):
    started, fresh = make(), make()
    modules = PLACES[place](LBFGS(history_size=4), StrongWolfe())
    optimizer = Optimizer(started.params[:3], *modules)
    for _ in range(5):
        optimizer.step(started.closure)
    optimizer.add_param_group({"params": started.params[3:]})
    with torch.no_grad():
        torch._foreach_copy_(fresh.params, started.params)
    groups = [{"params": fresh.params[:3]}, {"params": fresh.params[3:]}]
    other = Optimizer(groups, *modules)
    for _ in range(6):
        optimizer.step(started.closure)
        other.step(fresh.closure)
        for one, two in zip(started.params, fresh.params, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("place", ["bare", "vector"])
def test_another_history_size_begins_anew(make, place):
    started, fresh = make(), make()
    optimizer = Optimizer(started.params, *PLACES[place](LBFGS(history_size=4), StrongWolfe()))
    for _ in range(5):
        optimizer.step(started.closure)
    optimizer.param_groups[0]["history_size"] = 2
    with torch.no_grad():
        torch._foreach_copy_(fresh.params, started.params)
    other = Optimizer(fresh.params, *PLACES[place](LBFGS(history_size=2), StrongWolfe()))
    for _ in range(5):
        optimizer.step(started.closure)
        other.step(fresh.closure)
        for one, two in zip(started.params, fresh.params, strict=True):
            assert torch.equal(one, two)


def test_parameters_that_come_and_go_inside_a_learnt_map(make):
    """There the module sees only the tensors with a gradient: histories out of step are dropped."""

    class Learnt(ProjectionBase):
        scope = "tensor"

        def __init__(self, modules):
            super().__init__(modules, project_params=True, project_grad=True)

        def refresh(self, tensors, states):
            return None

        def project(self, tensors, *args):
            return list(tensors)

        def unproject(self, tensors, *args):
            return list(tensors)

    problem = make()
    optimizer = Optimizer(problem.params, Learnt([LBFGS(history_size=3), StrongWolfe()]))
    for i in range(20):
        problem.params[0].requires_grad_(i % 7 < 5)
        problem.params[2].requires_grad_(i % 5 < 3)
        loss = optimizer.step(problem.closure)
        assert problem.loss(problem.point()) < loss


class Rotation(ProjectionBase):
    """Multiplies each vector by an orthonormal basis, another one from the sixth step on."""

    scope = "tensor"

    def __init__(self, modules: Any, rank: int, policy: OnRefresh = "transport") -> None:
        super().__init__(modules, project_params=True, project_grad=True)
        self.rank = rank
        self.on_refresh = policy

    def basis(self, tensor: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(len(tensor), len(tensor), dtype=tensor.dtype, generator=generator)
        return torch.linalg.qr(draw).Q[:, : self.rank]

    def refresh(self, tensors, params, grads, loss, states, settings):
        new = []
        for i, (tensor, state) in enumerate(zip(tensors, states, strict=True)):
            state["count"] = state.get("count", -1) + 1
            basis = self.basis(tensor, i if state["count"] < 5 else i + 9)
            new.append({"basis": basis.to(tensor.device)} if state["count"] in (0, 5) else None)
        return new if any(new) else None

    def project(self, tensors, params, grads, loss, states, settings, current):
        return [s["basis"].T @ t for t, s in zip(tensors, states, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        return [s["basis"] @ t for t, s in zip(projected_tensors, states, strict=True)]


@pytest.mark.parametrize("rank", [4, 6])
def test_histories_are_carried_to_another_basis(make, rank):
    problem = make([(6,), (7,)])
    optimizer = Optimizer(problem.params, Rotation([LBFGS(history_size=8), StrongWolfe()], rank))
    for _ in range(5):
        optimizer.step(problem.closure)
    old = {name: entries(optimizer, name) for name in ("basis", "steps", "changes")}
    (pairs,) = {int(count) for count in entries(optimizer, "pairs")}
    optimizer.step(problem.closure)
    new = {name: entries(optimizer, name) for name in ("basis", "steps", "changes")}
    for name in ("steps", "changes"):
        for i in range(2):
            assert old[name][i].count_nonzero() == pairs * rank
            turned = old[name][i] @ old["basis"][i].T @ new["basis"][i]
            torch.testing.assert_close(new[name][i], turned, rtol=0, atol=1e-12)
    # No pair across the change: half of it would be in another basis.
    assert {int(count) for count in entries(optimizer, "pairs")} == {pairs}
    optimizer.step(problem.closure)
    assert {int(count) for count in entries(optimizer, "pairs")} == {pairs + 1}


def test_histories_are_reset_at_another_basis(make):
    """From there on it is as if it had begun there."""
    problem, fresh = make([(6,), (7,)]), make([(6,), (7,)])
    optimizer = Optimizer(
        problem.params, Rotation([LBFGS(history_size=8), StrongWolfe()], 4, "reset")
    )
    for _ in range(5):
        optimizer.step(problem.closure)
    assert {int(count) for count in entries(optimizer, "pairs")} == {4}
    with torch.no_grad():
        torch._foreach_copy_(fresh.params, problem.params)
    other = Optimizer(fresh.params, Rotation([LBFGS(history_size=8), StrongWolfe()], 4, "reset"))
    other.state.clear()
    for parameter in fresh.params:
        other.state[parameter] = {"0/count": 4, "0/basis": torch.zeros(0)}
    for i in range(4):
        optimizer.step(problem.closure)
        other.step(fresh.closure)
        assert {int(count) for count in entries(optimizer, "pairs")} == {i}
        for one, two in zip(problem.params, fresh.params, strict=True):
            assert torch.equal(one, two)


def test_memory_is_as_documented(make):
    problem = make([(3, 4), (5,)])
    optimizer = Optimizer(problem.params, VectorProjection([LBFGS(history_size=10), StrongWolfe()]))
    optimizer.step(problem.closure)
    memory = [value for entries in optimizer.state.values() for value in entries.values()]
    assert sum(value.numel() for value in memory if value.ndim) == (2 * 10 + 4) * 17
    assert sum(value.ndim == 0 for value in memory) == 2


def test_compiled_does_the_same(make, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # it is quicker
    eager, compiled = make(), make()
    one = Optimizer(eager.params, LBFGS(history_size=3), Backtracking())
    other = Optimizer(compiled.params, LBFGS(history_size=3), Backtracking(), compile=True)
    for i in range(8):
        for optimizer in (one, other):
            optimizer.param_groups[0]["beta"] = 0.5 + i / 100
        one.step(eager.closure)
        other.step(compiled.closure)
        assert distance(compiled.params, eager.params) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"history_size": 0}, ArgumentError),
        ({"history_size": 2.5}, ArgumentTypeError),
        ({"history_size": True}, ArgumentTypeError),
        ({"min_curvature": -1.0}, ArgumentError),
        ({"min_curvature": float("nan")}, ArgumentError),
    ],
)
def test_bad_settings_are_refused(arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=rf"LBFGS\({name}="):
        LBFGS(**arguments)
    optimizer = Optimizer([Parameter(torch.zeros(1))], LBFGS())
    with pytest.raises(error, match=name):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(1))], **arguments})
    assert len(optimizer.param_groups) == 1


def test_groups_must_agree(make):
    problem = make()
    groups = [{"params": problem.params[:2]}, {"params": problem.params[2:], "history_size": 3}]
    with pytest.raises(ArgumentError, match="history_size"):
        Optimizer(groups, LBFGS())
