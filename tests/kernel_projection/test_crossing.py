"""How facts and updates cross: when, by which map, and what a projection may ask for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from projcore import Chain, Module, Observer, Optimizer, ProjectionBase
from projcore.errors import ArgumentError, NeedsError
from projcore.testing import check_component
from projcore.testing.parts import Armijo, Merge, Mix, Momentum, Scale
from projcore.testing.problem import make_problem
from projcore.testing.subject import Subject
from tests.kernel_projection.subspace import Subspace, WholeSubspace, from_data, given


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_step(*modules, shapes=((4, 3), (5,))):
    """Returns how far a step takes the parameters, and the gradients."""
    params = [Parameter(draw(*shape, seed=10 + i)) for i, shape in enumerate(shapes)]
    before = [p.detach().clone() for p in params]
    optimizer = Optimizer(params, *modules)
    for i, param in enumerate(params):
        param.grad = draw(*param.shape, seed=i)
    optimizer.step()
    return [b - p.detach() for b, p in zip(before, params, strict=True)], [p.grad for p in params]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
@pytest.mark.parametrize("cls", [Subspace, WholeSubspace])
def test_it_keeps_the_laws(cls, policy):
    """A projection learnt from data that is not orthonormal keeps all laws, whatever its policy."""
    tags = frozenset({"linear", "data_dependent"})
    bases = from_data(rank=1 if cls is WholeSubspace else 2)
    subject = Subject(cls, f"{cls.__name__}-{policy}", tags, {"policy": policy, "bases": bases})
    results = check_component(subject)
    assert [result.message for result in results if result.status == "failed"] == []
    passed = {result.law for result in results if result.status == "passed"}
    assert passed >= {"round_trip", "adjoint", "composition", "nesting", "resume", "atomic"}


class Reads(Module):
    """Needs what it is told to; hands the update on."""

    scope = "element"

    def __init__(self, *needs):
        self.needs = frozenset(needs)
        super().__init__()

    def step(self, update, objective, state):
        return update


FACTS = ("params", "grads", "loss", "closure")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("need", FACTS)
@pytest.mark.parametrize("depth", [0, 1], ids=["direct", "in a chain"])
def test_needs_are_checked_when_built(need, params, grad, depth):
    delivered = (
        {"loss"} | ({"params", "closure"} if params else set()) | ({"grads"} if grad else set())
    )
    module = Chain(Scale(), Chain(Reads(need))) if depth else Reads(need)
    build = lambda: Mixed(module, project_params=params, project_grad=grad)  # noqa: E731
    if need in delivered:
        build()
        return
    flag = "project_grad=True" if need == "grads" else "project_params=True"
    with pytest.raises(NeedsError, match=rf"needs \['{need}'\]\. Pass {flag}\."):
        build()


class Mixed(Mix):
    """With the base class's own constructor."""

    __init__ = ProjectionBase.__init__


@pytest.mark.parametrize("need", ["params", "grads", "closure"])
def test_needs_go_through_projections(need):
    """What a module two levels down needs, each level above it must deliver."""
    inner = Mixed([Reads(need)], project_params=True, project_grad=True)
    with pytest.raises(NeedsError, match=need):
        Mixed([inner])


def test_a_projection_has_needs_of_its_own():
    class Reading(Mixed):
        needs = frozenset({"params"})

    with pytest.raises(NeedsError, match="params"):
        Mixed([Reading([Scale()])])


def test_facts_that_are_not_needed_are_not_there():
    seen = {}

    class Looking(Mixed):
        def project(self, tensors, params, grads, loss, states, settings, current):
            seen[self.needs] = (grads is None, loss is None)
            return super().project(tensors, params, grads, loss, states, settings, current)

    class LookingAtAll(Looking):
        needs = frozenset({"params", "grads", "loss"})

    for cls in (Looking, LookingAtAll):
        problem = make_problem()
        Optimizer(problem.params, cls([Scale()])).step(problem.closure)
    assert seen == {Looking.needs: (True, True), LookingAtAll.needs: (False, False)}


def test_nothing_handed_in():
    with pytest.raises(ArgumentError, match="projects nothing"):
        Mixed([Scale()], project_update=False, project_grad=False)


def test_project_update_false_begins_with_the_gradient():
    """What came before it in the chain is dropped."""
    make = lambda: Mixed([Scale(0.5)], project_update=False, project_grad=True)  # noqa: E731
    moved, grads = one_step(Scale(100.0), make())
    matrices = [Mix.matrix(grad.numel()) for grad in grads]
    close(
        moved,
        [
            (0.5 * m @ m.T @ g.flatten()).reshape(g.shape)
            for m, g in zip(matrices, grads, strict=True)
        ],
    )
    close(moved, one_step(make())[0])


def test_project_update_false_in_a_layout_runs_inside():
    class Merged(Merge):
        __init__ = ProjectionBase.__init__

    inner = Merged([Scale(0.5)], project_update=False, project_grad=True)
    close(one_step(Scale(100.0), inner)[0], one_step(Scale(0.5))[0])


def test_project_update_false_needs_the_gradient_of_its_space():
    inner = Mixed([Scale()], project_update=False, project_grad=True)
    with pytest.raises(NeedsError, match=r"needs \['grads'\]"):
        Mixed([inner])
    outer = Mixed([Scale(100.0), inner], project_grad=True)
    _, grads = one_step(outer)
    matrices = [Mix.matrix(grad.numel()) for grad in grads]
    close(
        one_step(Mixed([Scale(100.0), inner], project_grad=True))[0],
        [
            (0.05 * m @ m @ m.T @ m.T @ g.flatten()).reshape(g.shape)
            for m, g in zip(matrices, grads, strict=True)
        ],
    )


def test_the_residual_is_learnt_from_the_update_all_the_same():
    """refresh and combine see the update, whatever the modules inside begin with."""
    seen = []

    class Noting(Subspace):
        def refresh(self, tensors, *args):
            seen.append(tensors[0].clone())
            return super().refresh(tensors, *args)

    _, grads = one_step(Scale(100.0), Noting([Scale()], project_update=False, project_grad=True))
    close(seen[-1], 100 * grads[0])


class Look(Observer):
    """Keeps the parameters as the step left them."""

    scope = "element"
    kinds = {"seen": "first"}

    def init(self, tensor, settings):
        return {"seen": torch.zeros_like(tensor)}

    def observe(self, params, states, settings):
        for param, state in zip(params, states, strict=True):
            state["seen"].copy_(param)


class Owning(ProjectionBase):
    """Keeps the parameters in another format: what is written are its copies."""

    scope = "element"
    geometry = "pointwise"
    kinds = {"copy": "opaque"}
    needs = frozenset({"params"})

    def __init__(self, modules):
        super().__init__(modules, project_params=True, project_grad=True)

    def init(self, tensor, settings):
        return {"copy": torch.full_like(tensor, torch.nan, dtype=torch.float64)}

    def refresh(self, params, states):
        for param, state in zip(params, states, strict=True):
            state["copy"].copy_(param)

    def project(self, tensors, params, grads, loss, states, settings, current):
        return [tensor.double() for tensor in tensors]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        pairs = zip(projected_tensors, params, strict=True)
        return [tensor.to(param.dtype) for tensor, param in pairs]

    def targets(self, params, states, settings):
        return [state["copy"] for state in states]

    def combine(self, tensors, projected, result, params, grads, loss, states, settings):
        updates = []
        for update, param, state in zip(result, params, states, strict=True):
            state["copy"] = state["copy"] - update
            updates.append(param - state["copy"].to(param.dtype))
        return updates


LAST = [pytest.param(Look, id="observer"), pytest.param(lambda: Owning([Scale()]), id="owning")]


def build(*modules):
    params = [Parameter(draw(4, 3)), Parameter(draw(5))]
    return Optimizer(params, *modules)


@pytest.mark.parametrize("last", LAST)
def test_nothing_follows_what_must_come_last(last):
    with pytest.raises(ArgumentError, match=r"(?s)follows .*Put .* (before|inside) it"):
        build(last(), Scale())
    with pytest.raises(ArgumentError, match="follows"):
        build(Chain(Chain(Scale(), last()), Scale()))
    with pytest.raises(ArgumentError, match="follows"):
        build(Chain(Scale(), last()), Merge([Momentum()]))
    build(Scale(), last())
    build(Chain(Scale(), last()))


@pytest.mark.parametrize("last", LAST)
def test_what_must_come_last_stands_inside_layouts_only(last):
    with pytest.raises(ArgumentError, match="outside this projection"):
        build(Mixed([last()], project_params=True))
    merged = Merge([Scale(), last()])
    build(merged)
    with pytest.raises(ArgumentError, match="follows"):
        build(merged, Scale())
    with pytest.raises(ArgumentError, match="outside this projection"):
        build(Mixed([merged], project_params=True, project_grad=True))


def test_what_must_come_last_inside_a_layout():
    close(one_step(Merge([Scale(), Look()]))[0], one_step(Scale())[0])
    close(one_step(Merge([Scale(), Owning([Scale()])]))[0], one_step(Scale(0.05 * 0.05))[0])


@pytest.mark.parametrize("last", LAST)
def test_several_observers_may_come_last(last):
    optimizer = build(Scale(), last(), Look(), Look())
    params = optimizer.param_groups[0]["params"]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        for at in (2, 3):
            assert torch.equal(optimizer.state[param][f"{at}/seen"], param)


def test_one_refresh_a_step_and_one_map_for_all():
    """Everything crosses after the map is learnt, and by the same."""
    projection = Subspace([Momentum(), Scale(), Armijo()], project_params=True, project_grad=True)
    problem = make_problem([(4, 3), (3, 3)])
    optimizer = Optimizer(problem.params, projection)
    for _ in range(3):
        projection.log.clear()
        optimizer.step(problem.closure)
        assert projection.log[0] == "refresh"
        assert projection.log.count("refresh") == 1
        assert {"project params", "project grads", "project update"} <= set(projection.log)


def test_facts_are_projected_once_and_when_asked_for():
    projection = Subspace([Scale()], project_params=True, project_grad=True)
    one_step(projection)
    assert projection.log == ["refresh", "project update", "unproject update"]


class Trial(Module):
    """Evaluates the closure at one point, and notes where the parameters were then."""

    needs = frozenset({"params", "closure"})

    def __init__(self, notes):
        self.notes = notes
        super().__init__()

    def step(self, update, objective, state):
        point = [p - t for p, t in zip(objective.params, update, strict=True)]
        loss, grads = objective.evaluate(point)
        self.notes.append((loss, grads))
        return update


def test_a_trial_point_stays_on_the_plane_through_the_parameters():
    """A lossy linear map never destroys what it cannot represent."""
    notes, at = [], []
    basis = draw(4, 1)
    problem = make_problem([(4, 3), (5,)])
    start = problem.point()
    closure = lambda: (at.append(problem.point()), problem.closure())[1]  # noqa: E731
    projection = Subspace([Scale(), Trial(notes)], given(basis), project_params=True)
    Optimizer(problem.params, projection).step(closure)
    grads = torch.autograd.grad(problem.loss([s.requires_grad_() for s in start]), start)
    moved = [0.05 * basis @ basis.T @ grads[0], 0.05 * grads[1]]
    trial = [s.detach() - m for s, m in zip(start, moved, strict=True)]
    close(at[1], trial)
    loss, inside = notes[0]
    close(loss, problem.loss(trial))
    full = torch.autograd.grad(problem.loss([t.requires_grad_() for t in trial]), trial)
    close(inside, [basis.T @ full[0], full[1]])
    close(problem.point(), [t.detach() for t in trial])


def test_a_nonlinear_map_is_evaluated_at_what_it_says():
    notes, at = [], []

    class Cubes(Mixed):
        geometry = "pointwise"

        def project(self, tensors, params, grads, loss, states, settings, current):
            return (
                [t.sign() * t.abs() ** (1 / 3) for t in tensors] if current == "params" else tensors
            )

        def unproject(self, projected_tensors, *args):
            if args[-1] == "params":
                return [tensor**3 for tensor in projected_tensors]
            return list(projected_tensors)

    problem = make_problem([(5,)])
    start = problem.point()[0]
    closure = lambda: (at.append(problem.point()), problem.closure())[1]  # noqa: E731
    chain = [Scale(), Trial(notes)]
    Optimizer(problem.params, Cubes(chain, project_params=True)).step(closure)
    (grad,) = torch.autograd.grad(problem.loss([start.requires_grad_()]), start)
    start = start.detach()
    close(at[1][0], (start.sign() * start.abs() ** (1 / 3) - 0.05 * grad) ** 3)


class Residual(Subspace):
    """What the subspace does not hold is added, times a half."""

    def __init__(self, modules, bases, notes=None):
        self.notes = notes
        super().__init__(modules, bases, project_params=True, project_grad=True)

    def combine(self, tensors, projected, result, params, grads, loss, states, settings):
        if self.notes is not None:
            self.notes.append((tensors, projected, result))
        full = super().combine(tensors, projected, result, params, grads, loss, states, settings)
        back = self.unproject(projected, params, grads, loss, states, settings, "update")
        return [f + 0.5 * (t - b) for f, t, b in zip(full, tensors, back, strict=True)]


def test_combine_gets_what_came_in_and_what_came_out():
    basis, notes = draw(4, 2), []
    moved, grads = one_step(Residual([Scale()], given(basis), notes))
    (tensors, projected, result) = notes[-1]
    inside = basis.T @ grads[0]
    close(tensors, [grads[0]])
    close(projected, [inside])
    close(result, [0.05 * inside])
    expected = 0.05 * basis @ inside + 0.5 * (grads[0] - basis @ inside)
    close(moved, [expected, 0.05 * grads[1]])


def test_combine_nested():
    """The inner residual is that of what the outer projection handed in."""
    outer, inner = draw(4, 3), draw(3, 1)
    moved, grads = one_step(
        Residual([Residual([Scale()], given(inner))], given(outer)), shapes=((4, 3),)
    )
    z = outer.T @ grads[0]
    middle = 0.05 * inner @ inner.T @ z + 0.5 * (z - inner @ inner.T @ z)
    close(moved, [outer @ middle + 0.5 * (grads[0] - outer @ z)])


def test_combine_may_keep_a_residual():
    """Error feedback: what was lost comes back in the next step."""

    class Feedback(Subspace):
        def refresh(self, tensors, params, grads, loss, states, settings):
            new = super().refresh(tensors, params, grads, loss, states, settings)
            for tensor, state in zip(tensors, states, strict=True):
                state.setdefault("error", torch.zeros_like(tensor))
            return new

        def combine(self, tensors, projected, result, params, grads, loss, states, settings):
            back = self.unproject(projected, params, grads, loss, states, settings, "update")
            full = self.unproject(result, params, grads, loss, states, settings, "update")
            full = [f + state["error"] for f, state in zip(full, states, strict=True)]
            for t, b, state in zip(tensors, back, states, strict=True):
                state["error"] = t - b
            return full

    basis = torch.linalg.qr(draw(4, 2))[0]
    params = [Parameter(draw(4, 3, seed=10))]
    optimizer = Optimizer(params, Feedback([Scale(1.0)], given(basis)))
    grads = [draw(4, 3, seed=k) for k in range(2)]
    for grad in grads:
        params[0].grad = grad
        optimizer.step()
    down = basis @ basis.T
    close(
        params[0].detach(),
        draw(4, 3, seed=10) - down @ (grads[0] + grads[1]) - grads[0] + down @ grads[0],
    )
