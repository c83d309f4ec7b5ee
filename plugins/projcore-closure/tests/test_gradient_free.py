"""Gradients made from losses: SPSA, and differences element by element."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, StepError
from projcore.modules import LR, SPSA, Adam, FiniteDifference, StrongWolfe
from projcore.projections import RandomSubspace, ScalarProjection, To, VectorProjection, ViewAsReal
from projcore_closure import spsa
from tests.launches.counting import Counting
from tests.launches.fake_cuda import AVAILABLE, fake_cuda

PLACES: dict[str, Any] = {
    "bare": lambda *modules: list(modules),
    "vector": lambda *modules: [VectorProjection(modules)],
    "scalar": lambda *modules: [ScalarProjection(modules)],
    "vector in to": lambda *modules: [To([VectorProjection(modules)], "float64")],
}
everywhere = pytest.mark.parametrize("place", PLACES)
both = pytest.mark.parametrize("module", [SPSA, FiniteDifference])


def row(tensors) -> Tensor:
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().reshape(-1).double() for t in reals])


def moved(problem, optimizer: Optimizer) -> Tensor:
    """Takes a step; returns what was subtracted."""
    before = row(problem.params)
    optimizer.step(problem.closure)
    return before - row(problem.params)


def watch(problem) -> list[Tensor]:
    """Returns a list of the points where the loss is evaluated."""
    points: list[Tensor] = []
    problem.seen = lambda point: points.append(row(point))
    return points


@everywhere
@pytest.mark.parametrize("samples", [1, 3])
def test_spsa_is_its_formula(make, place, samples):
    problem = make()
    points = watch(problem)
    optimizer = Optimizer(problem.params, *PLACES[place](SPSA(0.01, samples, seed=5), LR(1e-3)))
    all_signs = []
    for _ in range(3):
        x = row(problem.params)
        points.clear()
        problem.backwards.clear()
        actual = moved(problem, optimizer)
        assert problem.backwards == [True, *[False] * (2 * samples)]
        expected = torch.zeros_like(x)
        for ahead, behind in zip(points[1::2], points[2::2], strict=True):
            signs = (ahead - behind) / 0.02
            torch.testing.assert_close(signs.abs(), torch.ones_like(x), rtol=0, atol=1e-10)
            torch.testing.assert_close((ahead + behind) / 2, x, rtol=1e-12, atol=1e-12)
            fall = problem.loss([ahead]) - problem.loss([behind])
            expected += fall / 0.02 * signs / samples
            all_signs.append(signs)
        torch.testing.assert_close(1e3 * actual, expected, rtol=1e-9, atol=1e-9)
    drawn = torch.stack(all_signs)  # (3 * samples, n)
    assert len(drawn.round().unique(dim=0)) == 3 * samples
    assert drawn.mean().abs() < 0.5


@everywhere
@pytest.mark.parametrize(("samples", "normalize"), [(1, False), (3, False), (3, True)])
def test_spsa_on_one_side_is_its_formula(make, place, samples, normalize):
    problem = make()
    points = watch(problem)
    how: dict[str, Any] = {"distribution": "gaussian", "normalize": normalize}
    module = SPSA(0.01, samples, seed=5, sides=1, **how)
    optimizer = Optimizer(problem.params, *PLACES[place](module, LR(1e-3)))
    drawn = []
    for _ in range(3):
        points.clear()
        problem.backwards.clear()
        actual = moved(problem, optimizer)
        assert problem.backwards == [True, *[False] * samples]
        here, *others = points
        expected = torch.zeros_like(here)
        for ahead in others:
            drawn.append((ahead - here) / 0.01)
            rise = problem.loss([ahead]) - problem.loss([here])
            expected += rise / 0.01 * drawn[-1] / samples
        if normalize:
            losses = torch.stack([problem.loss([ahead]) for ahead in others])
            expected /= ((losses - losses.mean()) ** 2).sum().div(samples - 1).sqrt()
        torch.testing.assert_close(1e3 * actual, expected, rtol=1e-9, atol=1e-9)
    numbers = torch.stack(drawn)
    assert len(numbers.round(decimals=6).unique(dim=0)) == 3 * samples
    assert 0.6 < float(numbers.square().mean()) < 1.6
    assert (numbers.abs() - 1).abs().max() > 0.1  # they are no signs


def test_normalized_spsa_stays_where_all_losses_are_the_same():
    weight = torch.nn.Parameter(torch.ones(3))
    module = SPSA(samples=4, sides=1, normalize=True)
    Optimizer([weight], module, LR(1.0)).step(lambda: torch.tensor(2.0))
    assert torch.equal(weight.detach(), torch.ones(3))


def test_spsa_normalizes_by_losses_of_one_side_and_two_samples():
    with pytest.raises(ArgumentError, match=r"SPSA\(normalize=True, sides=2\).*sides=1"):
        SPSA(samples=4, normalize=True)
    with pytest.raises(ArgumentError, match=r"SPSA\(normalize=True\) was given samples=1"):
        SPSA(sides=1, normalize=True)


def test_spsa_holds_perturbations_of_two_tensors_at_most(make, monkeypatch):
    """MeZO's memory, beside the point to come back to and the update."""
    alive: list[weakref.ref[Tensor]] = []
    most = []
    draw = spsa.random_normal

    def drawn(like: Tensor, generator: torch.Generator) -> Tensor:
        most.append(sum(each() is not None for each in alive))
        made = draw(like, generator)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(spsa, "random_normal", drawn)
    problem = make()
    Optimizer(problem.params, SPSA(samples=2, distribution="gaussian"), LR(0.01)).step(
        problem.closure
    )
    assert len(most) == 2 * 3 * len(problem.params)  # on either side, and for the update
    assert max(most) <= 2 < len(problem.params)


@pytest.mark.skipif(not AVAILABLE, reason="torch has no device guard for CUDA here")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("settings", [{}, {"samples": 4}, {"samples": 3, "sides": 1}], ids=str)
def test_spsa_takes_one_copy_of_the_parameters(settings, frozen):
    """The point to come back to, or the update; and what is at work on one tensor."""
    with fake_cuda():
        params = [torch.nn.Parameter(torch.empty(50, 20, device="cuda:0")) for _ in range(40)]
        size = sum(param.nbytes for param in params)
        if frozen:
            params.append(torch.nn.Parameter(torch.empty(7, device="cuda:0"), requires_grad=False))
        optimizer = Optimizer(params, SPSA(distribution="gaussian", **settings), LR(0.1))

        def closure(backward: bool = True) -> Tensor:
            return params[0].detach().sum()

        for _ in range(2):
            with Counting() as counting:
                optimizer.step(closure)
            assert size < counting.peak <= size + 4.1 * params[0].nbytes


def test_lozo_is_a_composition(make):
    """A perturbation of rank 2 is a product, whose right factor stays for a period."""
    weight = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight.requires_grad_()
    target, points = torch.ones(6, 5, dtype=torch.float64), []

    def closure(backward: bool = True) -> Tensor:
        points.append(weight.detach().clone())
        return (weight.detach() - target).square().sum()

    inner = [SPSA(distribution="gaussian"), LR(0.01)]
    optimizer = Optimizer([weight], RandomSubspace(inner, rank=2, period=3))
    spans = []
    for _ in range(6):
        points.clear()
        optimizer.step(closure)
        perturbation = (points[1] - points[2]) / 2e-3
        assert torch.linalg.matrix_rank(perturbation, rtol=1e-6) == 2
        _, _, vh = torch.linalg.svd(perturbation)
        spans.append(vh[:2].T @ vh[:2])
    torch.testing.assert_close(spans[0], spans[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spans[3], spans[5], rtol=1e-6, atol=1e-6)
    assert (spans[2] - spans[3]).norm() > 0.1


def test_the_mean_of_spsa_is_the_gradient(make):
    """Of a quadratic, without bias; the error of the mean falls with the root of the samples."""
    problem = make()
    problem.coupling = 0.0
    gradient, _ = problem.derivatives(problem.point())
    errors = [
        float((moved(problem, Optimizer(problem.params, SPSA(samples=samples), LR(1e-9))) * 1e9
               - gradient).norm() / gradient.norm())
        for samples in (20, 2000)
    ]  # fmt: skip
    assert errors[1] < 0.2
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128, torch.bfloat16])
def test_in_one_dimension_spsa_is_the_difference(make, dtype):
    start = torch.tensor([1 + 1j] if dtype.is_complex else [1.5]).to(dtype)
    problem = make(tensors=[start])
    problem.coupling = 0.0
    weight = problem.params[0]
    # Real: two losses give the slope. Complex: two parts, so a mean of draws does.
    samples = 200 if dtype.is_complex else 1
    expected, _ = problem.derivatives(problem.point())
    (before,) = problem.point()
    Optimizer([weight], SPSA(0.125, samples)).step(problem.closure)
    actual = row([before]) - row([weight])
    tolerance = 0.2 if dtype.is_complex else 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_spsa_draws_by_its_seed_alone(make):
    def run(seed: int, noise: int) -> Tensor:
        problem = make()
        optimizer = Optimizer(problem.params, SPSA(seed=seed), LR(0.01))
        for _ in range(4):
            torch.manual_seed(noise)
            optimizer.step(problem.closure)
        return row(problem.params)

    assert torch.equal(run(1, 2), run(1, 3))
    assert not torch.equal(run(1, 2), run(2, 2))
    assert not torch.equal(run(0, 2), run(2**32 - 1, 2))


@everywhere
def test_spsa_minimises(make, place):
    problem = make()
    problem.coupling = 0.0
    minimum = torch.linalg.solve(problem.hessian, problem.target)
    optimizer = Optimizer(problem.params, *PLACES[place](SPSA(samples=4), LR(0.08)))
    for _ in range(300):
        optimizer.step(problem.closure)
    assert (row(problem.params) - minimum).norm() < 0.05 * minimum.norm()


@everywhere
@pytest.mark.parametrize(("perturbation", "tolerance"), [(None, 1e-9), (0.01, 1e-3)])
def test_differences_are_the_gradient(make, place, perturbation, tolerance):
    problem = make()
    module = FiniteDifference(perturbation)
    optimizer = Optimizer(problem.params, *PLACES[place](module, LR(0.1)))
    for _ in range(3):
        expected, _ = problem.derivatives(problem.point())
        problem.backwards.clear()
        actual = 10 * moved(problem, optimizer)
        assert (actual - expected).norm() < tolerance * expected.norm()
        assert problem.backwards == [True, *[False] * (2 * len(expected))]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.complex128, 1e-8), (torch.float32, 1e-3), (torch.bfloat16, 0.2)],
)
def test_differences_in_other_dtypes(make, dtype, tolerance):
    torch.manual_seed(0)
    problem = make(tensors=[torch.randn(3, 2, dtype=dtype).t(), torch.randn((), dtype=dtype)])
    expected, _ = problem.derivatives(problem.point())
    actual = moved(problem, Optimizer(problem.params, FiniteDifference()))
    assert (actual - expected).norm() < tolerance * expected.norm()


def test_differences_divide_by_the_distance_as_rounded(make):
    """Two or three units in the last place of float32 apart; the loss is in float64."""
    problem = make(dtype=torch.float32)
    expected, _ = problem.derivatives(problem.point())
    optimizer = Optimizer(problem.params, FiniteDifference(3e-7), LR(1e3))
    actual = moved(problem, optimizer) / 1e3
    assert (actual - expected).norm() < 1e-4 * expected.norm()


def test_complex_differences_are_those_of_pairs_of_reals(make):
    start = torch.randn(4, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    one, other = make(tensors=[start]), make(tensors=[start])
    ours = moved(one, Optimizer(one.params, FiniteDifference()))
    theirs = moved(other, Optimizer(other.params, ViewAsReal([FiniteDifference()])))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_perturbation_lost_in_rounding_is_refused(make):
    problem = make(dtype=torch.float32)
    before = problem.point()
    optimizer = Optimizer(problem.params, FiniteDifference(1e-9))
    with pytest.raises(StepError, match=r"FiniteDifference\(perturbation=1e-09\).*larger"):
        optimizer.step(problem.closure)
    assert all(map(torch.equal, problem.params, before))


@pytest.mark.parametrize("maps", [[(3, "tensor")], [(9, "all"), (4, "tensor")]])
def test_inside_a_lossy_projection_the_points_are_in_the_plane(make, linear, maps):
    """Of 14 numbers some remain: so many losses does it take, and their gradient is U U^T g."""
    problem = make([(4, 2), (6,)])
    whole, tensors = torch.eye(14, dtype=torch.float64), problem.point()
    inner: list[Module] = [FiniteDifference()]
    for rank, scope in maps:
        each = linear([LR(1)], rank, scope)
        whole = whole @ each.matrix(tensors)
        tensors = each.project(tensors, tensors, None, None, [], [], "params")
    for rank, scope in reversed(maps):
        inner = [linear(inner, rank, scope)]
    x, points = row(problem.params), watch(problem)
    gradient, _ = problem.derivatives([x])
    actual = moved(problem, Optimizer(problem.params, *inner))
    torch.testing.assert_close(actual, whole @ (whole.T @ gradient), rtol=1e-7, atol=1e-7)
    assert problem.calls == 1 + 2 * whole.shape[1]
    off = [
        p - x - whole @ torch.linalg.lstsq(whole, (p - x)[:, None]).solution[:, 0] for p in points
    ]
    assert max(float(o.norm()) for o in off) < 1e-12


class Spoil(Module):
    """Returns no numbers."""

    def step(self, update, objective, state):
        return [torch.full_like(tensor, torch.nan) for tensor in update]


@both
@pytest.mark.parametrize("place", ["bare", "vector"])
def test_what_comes_in_is_not_used(make, place, module):
    one, other = make(), make()
    spoiled = Optimizer(one.params, *PLACES[place](Spoil(), module(), LR(0.01)))
    plain = Optimizer(other.params, *PLACES[place](module(), LR(0.01)))
    assert torch.equal(moved(one, spoiled), moved(other, plain))


@both
@everywhere
def test_a_closure_need_not_run_backward(make, place, module):
    problem, twin = make(), make()
    optimizer = Optimizer(problem.params, *PLACES[place](module(), Adam(), LR(0.01)))
    other = Optimizer(twin.params, *PLACES[place](module(), Adam(), LR(0.01)))
    for _ in range(3):
        optimizer.step(lambda: problem.closure(backward=False))
        other.step(twin.closure)
    assert torch.equal(row(problem.params), row(twin.params))
    assert not any(problem.backwards)


@both
@pytest.mark.parametrize("place", ["bare", "vector"])
def test_a_frozen_parameter_stays_where_it_is(make, place, module):
    problem = make([(3, 2), (4,), (3,)])
    problem.params[1].requires_grad_(False)
    points = watch(problem)
    optimizer = Optimizer(problem.params, *PLACES[place](module(), LR(0.01)))
    x = row(problem.params)
    for _ in range(2):
        optimizer.step(problem.closure)
    assert torch.equal(row(problem.params)[6:10], x[6:10])
    assert all(torch.equal(point[6:10], x[6:10]) for point in points)
    assert (row(problem.params) - x)[[0, 5, 10, 12]].abs().min() > 0


def test_goes_on_when_other_parameters_get_gradients(make):
    """The count of steps is one for all: it does not begin again with the tensors."""
    problem = make()
    points = watch(problem)
    optimizer = Optimizer(problem.params, SPSA(), LR(1e-6))
    drawn = []
    for i in range(6):
        problem.params[0].requires_grad_(i % 2 == 1)
        points.clear()
        optimizer.step(problem.closure)
        drawn.append(((points[1] - points[2]) / 2e-3).round()[12:])
    assert len(torch.stack(drawn).unique(dim=0)) == 6


def test_a_line_search_may_follow(make):
    problem = make()
    optimizer = Optimizer(problem.params, FiniteDifference(), StrongWolfe())
    losses = [float(optimizer.step(problem.closure)) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 5


@pytest.mark.parametrize(
    ("module", "arguments", "error"),
    [
        (SPSA, {"perturbation": 0.0}, ArgumentError),
        (SPSA, {"sides": 3}, ArgumentError),
        (SPSA, {"distribution": "uniform"}, ArgumentError),
        (SPSA, {"samples": 0}, ArgumentError),
        (SPSA, {"samples": 1.5}, ArgumentTypeError),
        (SPSA, {"seed": -1}, ArgumentError),
        (SPSA, {"seed": 2**32}, ArgumentError),
        (SPSA, {"seed": 0.5}, ArgumentTypeError),
        (SPSA, {"seed": True}, ArgumentTypeError),
        (FiniteDifference, {"perturbation": 0.0}, ArgumentError),
        (FiniteDifference, {"perturbation": float("nan")}, ArgumentError),
    ],
)
def test_bad_arguments_are_refused(module, arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=rf"{module.__name__}\({name}="):
        module(**arguments)
