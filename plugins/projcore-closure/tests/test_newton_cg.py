from __future__ import annotations

from typing import Any

import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, Backtracking, NewtonCG, StrongWolfe
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal
from projcore_closure.newton_cg import conjugate_gradients

PLACES: dict[str, Any] = {
    "bare": lambda *modules: list(modules),
    "vector": lambda *modules: [VectorProjection(modules)],
    "scalar": lambda *modules: [ScalarProjection(modules)],
    "vector in to": lambda *modules: [To([VectorProjection(modules)], "float64")],
}
MAPS = {
    "tensor": [(3, "tensor")],
    "all": [(8, "all")],
    "all in tensor": [(5, "tensor"), (6, "all")],
    "tensor in all": [(9, "all"), (4, "tensor")],
}


def row(tensors) -> Tensor:
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().reshape(-1).double() for t in reals])


def moved(problem, optimizer: Optimizer) -> Tensor:
    """Takes a step; returns what was subtracted."""
    before = row(problem.params)
    optimizer.step(problem.closure)
    return before - row(problem.params)


def krylov(hessian: Tensor, target: Tensor, count: int) -> Tensor:
    """An orthonormal basis of what `count` products with the Hessian can reach."""
    basis = (target / target.norm())[:, None]
    for _ in range(count - 1):
        new = hessian @ basis[:, -1]
        for _ in range(2):
            new = new - basis @ (basis.T @ new)
        basis = torch.cat([basis, (new / new.norm())[:, None]], 1)
    return basis


def solve_within(basis: Tensor, hessian: Tensor, target: Tensor) -> Tensor:
    return basis @ torch.linalg.solve(basis.T @ hessian @ basis, basis.T @ target)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_conjugate_gradients_solve_within_the_krylov_space(count):
    torch.manual_seed(count)
    root = torch.randn(11, 11, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(11)
    target = torch.randn(11, dtype=torch.float64)
    given = target.clone()

    def product(vector: list[Tensor]) -> list[Tensor]:
        return list((hessian @ torch.cat(vector)).split([4, 7]))

    result = conjugate_gradients(product, list(target.split([4, 7])), 0.0, count)
    expected = solve_within(krylov(hessian, target, count), hessian, target)
    torch.testing.assert_close(torch.cat(result), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(target, given)


@pytest.mark.parametrize("seed", range(8))
def test_they_end_where_the_curvature_is_negative(seed):
    """All curvatures so far are positive exactly while the Hessian on the Krylov space is.

    The last direction is the residual's part that is conjugate to that space.
    """
    torch.manual_seed(seed)
    root = torch.randn(9, 9, dtype=torch.float64)
    hessian = root @ root.T - (1 + seed) * torch.eye(9)
    target = root @ torch.randn(9, dtype=torch.float64)
    bases = [krylov(hessian, target, count) for count in range(1, 10)]
    good = [bool((torch.linalg.eigvalsh(b.T @ hessian @ b) > 0).all()) for b in bases]
    count = good.index(False)
    products = []

    def product(vector: list[Tensor]) -> list[Tensor]:
        products.append(vector)
        return [hessian @ vector[0]]

    (result,) = conjugate_gradients(product, [target], 0.0, 20)
    solution, residual, direction = torch.zeros_like(target), target, target
    if count:
        basis = bases[count - 1]
        solution = solve_within(basis, hessian, target)
        residual = target - hessian @ solution
        direction = residual - solve_within(basis, hessian, hessian @ residual)
    curvature = direction @ hessian @ direction
    assert curvature < 0
    expected = solution - residual @ residual / curvature * direction
    torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-7)
    assert result @ target > 0  # the function falls along it
    assert len(products) == count + 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("central", "tolerance"), [(False, 3e-6), (True, 3e-8)])
@pytest.mark.parametrize("coupling", [0.0, 0.1])
def test_is_newtons_step(make, place, central, tolerance, coupling):
    """To the error of differences: their rounding, times the Hessian's condition of some 40."""
    problem = make()
    problem.coupling = coupling
    module = NewtonCG(tolerance=1e-12, central=central)
    optimizer = Optimizer(problem.params, *PLACES[place](module))
    gradient, hessian = problem.derivatives(problem.point())
    assert (torch.linalg.eigvalsh(hessian) > 0.05).all()
    expected = torch.linalg.solve(hessian, gradient)
    actual = moved(problem, optimizer)
    assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("coupling", [0.0, 0.1])
def test_inside_the_hessian_is_that_of_the_plane(make, linear, maps, coupling):
    """A step of `z`, where `U^T H U z = U^T g`, is the step `U z` outside."""
    problem = make([(4, 2), (6,)])
    problem.coupling = coupling
    inner: list[Module] = [NewtonCG(tolerance=1e-12, central=True)]
    for rank, scope in reversed(MAPS[maps]):
        inner = [linear(inner, rank, scope)]
    optimizer = Optimizer(problem.params, *inner)
    whole, tensors = torch.eye(14, dtype=torch.float64), problem.point()
    for rank, scope in MAPS[maps]:
        each = linear([LR(1)], rank, scope)
        whole = whole @ each.matrix(tensors)
        tensors = each.project(tensors, tensors, None, None, [], [], "params")
    gradient, hessian = problem.derivatives(problem.point())
    expected = whole @ torch.linalg.solve(whole.T @ hessian @ whole, whole.T @ gradient)
    actual = moved(problem, optimizer)
    assert (actual - expected).norm() < 1e-6 * expected.norm()
    newton = torch.linalg.solve(hessian, gradient)
    assert (newton - expected).norm() > 0.1 * newton.norm()  # the plane matters


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(("tolerance", "size"), [(0.5, 1.0), (1e-3, 1.0), (0.5, 1e-4)])
def test_stops_at_the_tolerance_and_evaluates_no_more(make, central, tolerance, size):
    """With the first iterate whose residual is at most min(tolerance, sqrt(|z| / |x|)) |g|."""
    problem = make()
    problem.coupling = 0.0
    minimum = torch.linalg.solve(problem.hessian, problem.target)
    start = minimum + size * torch.ones_like(minimum)
    with torch.no_grad():
        for parameter, part in zip(
            problem.params, start.split([p.numel() for p in problem.params]), strict=True
        ):
            parameter.copy_(part.reshape(parameter.shape))
    gradient, hessian = problem.derivatives(problem.point())
    for count in range(1, 30):
        expected = solve_within(krylov(hessian, gradient, count), hessian, gradient)
        bound = min(tolerance, float(expected.norm() / start.norm()) ** 0.5) * gradient.norm()
        if (hessian @ expected - gradient).norm() <= bound:
            break
    module = NewtonCG(tolerance=tolerance, perturbation=1.0, central=central)
    actual = moved(problem, Optimizer(problem.params, module))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * float(expected.norm()))
    assert problem.calls == 1 + count * (2 if central else 1)
    assert all(problem.backwards)


def test_max_iterations_bound_the_evaluations(make):
    problem = make()
    optimizer = Optimizer(problem.params, NewtonCG(max_iterations=3, tolerance=1e-12), LR(0.1))
    optimizer.step(problem.closure)
    assert problem.calls == 4


def test_where_nothing_curves_upward_it_is_the_update_times_a_length(make):
    problem = make()
    problem.sign, problem.coupling = -1.0, 0.0
    gradient, hessian = problem.derivatives(problem.point())
    expected = gradient * (gradient @ gradient) / -(gradient @ hessian @ gradient)
    torch.testing.assert_close(
        moved(problem, Optimizer(problem.params, NewtonCG())), expected, rtol=1e-6, atol=1e-6
    )
    assert problem.calls == 2


def test_along_a_straight_line_it_is_the_update():
    weight = Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = Optimizer([weight], NewtonCG())

    def closure():
        weight.grad = slope.clone()
        return weight.detach() @ slope

    before = weight.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(before - weight.detach(), slope, rtol=0, atol=0)


class Times(Module):
    """Multiplies the update by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def step(self, update, objective, state):
        return [self.factor * tensor for tensor in update]


def test_the_update_is_what_is_solved_for(make):
    """Not the gradient: what stands before it acts."""
    one, other = make(), make()
    for problem in (one, other):
        problem.coupling = 0.0
    module = NewtonCG(tolerance=1e-9)
    doubled = moved(one, Optimizer(one.params, Times(2.0), module))
    plain = moved(other, Optimizer(other.params, module))
    torch.testing.assert_close(doubled, 2 * plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_without_a_direction_nothing_is_evaluated(make, factor):
    problem = make()
    optimizer = Optimizer(problem.params, Times(factor), NewtonCG(), Backtracking())
    before = row(problem.params)
    optimizer.step(problem.closure)
    assert torch.equal(row(problem.params), before)
    assert problem.calls == 1


@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize("place", PLACES)
def test_finds_the_minimum_that_scipy_finds(make, place, search):
    problem, theirs = make(), make()
    problem.coupling = theirs.coupling = 0.1
    optimizer = Optimizer(problem.params, *PLACES[place](NewtonCG(), search()))
    losses = [float(optimizer.step(problem.closure)) for _ in range(12)]
    assert losses == sorted(losses, reverse=True)
    found = scipy.optimize.minimize(
        lambda x: float(theirs.loss([torch.from_numpy(x)])),
        row(theirs.params).numpy(),
        jac=lambda x: theirs.derivatives([torch.from_numpy(x)])[0].numpy(),
        hess=lambda x: theirs.derivatives([torch.from_numpy(x)])[1].numpy(),
        method="Newton-CG",
        options={"xtol": 1e-10},
    )
    assert found.success
    expected = torch.from_numpy(found.x)
    assert (row(problem.params) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.pairwise
@pytest.mark.parametrize(("tolerance", "steps"), [(0.5, 60), (1e-3, 25)])
@pytest.mark.parametrize("search", [StrongWolfe, Backtracking])
@pytest.mark.parametrize(
    ("place", "start"),
    [
        *((place, (-1.2, 1.0)) for place in PLACES),
        *(("vector", start) for start in ((-1.1, 2.5), (0.0, 3.0), (2.0, -2.0))),
    ],
)
def test_minimises_rosenbrock(place, search, tolerance, steps, start):
    """In fewer steps than scipy needs, 86 from the first; in far fewer when near to Newton's own.

    At (-1.1, 2.5) and (0, 3) the Hessian has a negative eigenvalue.
    """
    params = [Parameter(torch.tensor([x], dtype=torch.float64)) for x in start]
    optimizer = Optimizer(params, *PLACES[place](NewtonCG(tolerance=tolerance), search()))

    def closure():
        optimizer.zero_grad()
        x, y = params
        loss = ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()
        loss.backward()
        return loss.detach()

    more = 0 if start == (-1.2, 1.0) else 5
    losses = [float(optimizer.step(closure)) for _ in range(steps + more)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-12


@pytest.mark.parametrize("central", [False, True])
def test_differences_are_as_wide_as_float32_parameters_need(central):
    """In To(float64) the points look finer than they are; the loss tells."""
    scale = torch.linspace(1, 10, 40)
    weight = Parameter(torch.linspace(-2, 3, 40))

    def closure():
        weight.grad = None
        loss = (scale * weight**2).sum() / 2 + (weight**4).sum() / 100
        loss.backward()
        return loss.detach()

    module = NewtonCG(tolerance=1e-3, central=central)
    optimizer = Optimizer([weight], To([VectorProjection([module])], "float64"))
    x = weight.detach().clone()
    expected = (scale * x + x**3 / 25) / (scale + 3 * x**2 / 25)
    optimizer.step(closure)
    assert (x - weight.detach() - expected).norm() < 3e-3 * expected.norm()


def test_complex_parameters_are_pairs_of_reals(make):
    start = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tail = torch.ones(3, dtype=torch.float64)
    problems = [make(tensors=[start, tail])]
    problems += [make(tensors=[torch.view_as_complex(start), tail]) for _ in range(2)]
    modules = [NewtonCG(tolerance=1e-3), StrongWolfe()]
    optimizers = [
        Optimizer(problems[0].params, *modules),
        Optimizer(problems[1].params, *modules),
        Optimizer(problems[2].params, ViewAsReal(modules)),
    ]
    for _ in range(3):
        for optimizer, problem in zip(optimizers, problems, strict=True):
            optimizer.step(problem.closure)
        for problem in problems[1:]:
            torch.testing.assert_close(
                row(problem.params), row(problems[0].params), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("how", ["frozen", "no gradient"])
@pytest.mark.parametrize("place", ["bare", "vector"])
def test_a_frozen_parameter_stays_and_has_no_part(make, place, how):
    problem = make([(3, 2), (4,), (3,)])
    problem.coupling = 0.0
    problem.leave_out(1, how)
    module = NewtonCG(tolerance=1e-12)
    optimizer = Optimizer(problem.params, *PLACES[place](Times(1.0), module))
    gradient, hessian = problem.derivatives(problem.point())
    free = [0, 1, 2, 3, 4, 5, 10, 11, 12]
    expected = torch.zeros_like(gradient)
    expected[free] = torch.linalg.solve(hessian[free][:, free], gradient[free])
    torch.testing.assert_close(moved(problem, optimizer), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_iterations": 0}, ArgumentError),
        ({"max_iterations": 2.5}, ArgumentTypeError),
        ({"tolerance": 0.0}, ArgumentError),
        ({"tolerance": float("nan")}, ArgumentError),
        ({"perturbation": 0.0}, ArgumentError),
    ],
)
def test_bad_settings_are_refused(arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=rf"NewtonCG\({name}="):
        NewtonCG(**arguments)


def test_groups_must_agree(make):
    problem = make()
    groups = [{"params": problem.params[:2]}, {"params": problem.params[2:], "tolerance": 0.1}]
    with pytest.raises(ArgumentError, match="tolerance"):
        Optimizer(groups, NewtonCG())
