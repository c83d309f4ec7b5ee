"""What becomes of memory inside when the map changes, by policy and by kind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer, ProjectionBase
from projcore.engine.plan import PASSES
from projcore.errors import ProjcoreError
from projcore.modules import Route
from projcore.projections import To
from projcore.testing.parts import Merge, Mix, Moments, Momentum, Scalars, Scale
from projcore.testing.problem import flat
from tests.kernel_projection.subspace import Remember, Subspace, WholeSubspace, given


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OLD, NEW, WIDER = draw(4, 2, seed=1), draw(4, 2, seed=2), draw(4, 3, seed=3)
SHAPES = ((4, 3), (5,))
INSIDE = "0/modules/0"


def run(modules, steps, shapes=SHAPES, missing=()):
    params = [Parameter(draw(*shape, seed=10 + i)) for i, shape in enumerate(shapes)]
    optimizer = Optimizer(params, *modules)
    for step in range(steps):
        feed(params, step, missing)
        optimizer.step()
    return params, optimizer


def feed(params, step, missing=()):
    for i, param in enumerate(params):
        param.grad = None if i in missing else draw(*param.shape, seed=100 * step + i)


def memory(params, optimizer, path=INSIDE):
    """The entries of the module at that position, for each parameter."""
    return [
        {k.removeprefix(f"{path}/"): v for k, v in optimizer.state[p].items() if k.startswith(path)}
        for p in params
    ]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_no_change_no_difference(policy):
    """Only a changed map may touch memory."""
    never = Subspace([Momentum(), Moments(), Scale()], given(OLD), policy)
    keeps = Subspace([Momentum(), Moments(), Scale()], given(OLD), "keep")
    close(run([never], 4)[0], run([keeps], 4)[0])


def test_keep():
    kept = memory(*run([Subspace([Momentum()], given(OLD, None, NEW), "keep")], 3))
    grads = [draw(4, 3, seed=100 * step) for step in range(3)]
    expected = 0.9 * (0.9 * OLD.T @ grads[0] + OLD.T @ grads[1]) + NEW.T @ grads[2]
    close(kept[0]["momentum_buffer"], expected)


def test_reset():
    """What was projected begins anew; what passed through goes on."""
    params, optimizer = run([Subspace([Momentum(), Moments()], given(OLD, None, NEW), "reset")], 3)
    close(memory(params, optimizer)[0]["momentum_buffer"], NEW.T @ draw(4, 3, seed=200))
    moments = memory(params, optimizer, "0/modules/1")
    assert [int(entries["step"]) for entries in moments] == [1, 3]
    bare, _ = run([Momentum(), Moments()], 3)
    close(params[1], bare[1])


class Beginning(Subspace):
    """Reinitializes state inside of the first tensor in the third step, by a new map or not."""

    def refresh(self, tensors, params, grads, loss, states, settings):
        new = super().refresh(tensors, params, grads, loss, states, settings)
        if states[0]["step"] == 3:
            new = [{**((new and new[0]) or {}), "modules": {}}, *[None] * (len(states) - 1)]
        return new


@pytest.mark.parametrize("last", [NEW, None])
@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_state_inside_of_one_tensor_is_reinitialized(policy, last):
    """Whatever the policy, and where a kernel has it in lists, as Adam's."""
    shapes = ((4, 3), (4, 2))
    params, optimizer = run(
        [Beginning(["adam()", "lr(0.1)"], given(OLD, None, last), policy)], 4, shapes
    )
    first, second = memory(params, optimizer)
    assert [int(first["step"]), int(second["step"])] == [2, 4]
    basis = OLD if last is None else NEW
    grads = [draw(4, 3, seed=100 * step) for step in (2, 3)]
    close(first["exp_avg"], basis.T @ (0.09 * grads[0] + 0.1 * grads[1]))


def test_transport_by_kind():
    names = ("first", "second")
    params, optimizer = run([Subspace([Remember(*names)], given(OLD, NEW), "transport")], 2)
    inside, passed = memory(params, optimizer)
    first = OLD.T @ draw(4, 3)
    close(inside["first"], NEW.T @ OLD @ first)
    close(inside["second"], (NEW.T @ OLD @ first).abs())
    assert inside["age"] == 2
    close(passed["first"], draw(5, seed=1))


def test_transport_of_a_history():
    params, optimizer = run([Subspace([Remember("history")], given(OLD, NEW), "transport")], 2)
    inside, passed = memory(params, optimizer)
    moved = NEW.T @ OLD @ OLD.T @ draw(4, 3)
    close(inside["history"], torch.stack([moved, 2 * moved]))
    close(passed["history"][0], draw(5, seed=1))


@pytest.mark.parametrize("kind", ["opaque", "covariance"])
def test_what_cannot_be_moved_resets_its_module_and_no_other(kind):
    chain = [Remember("first", kind), Remember("first")]
    params, optimizer = run([Subspace(chain, given(OLD, NEW), "transport")], 2)
    inside = memory(params, optimizer)[0]
    close(inside["first"], NEW.T @ draw(4, 3, seed=100))
    assert inside["age"] == 1
    other = memory(params, optimizer, "0/modules/1")[0]
    close(other["first"], NEW.T @ OLD @ OLD.T @ draw(4, 3))
    assert other["age"] == 2


@pytest.mark.parametrize("kind", ["opaque", "covariance"])
def test_what_cannot_be_moved_stays_where_nothing_changed(kind):
    """A tensor that passes through, or whose map stays, keeps its memory."""
    bases = {4: given(OLD, NEW), 3: given(OLD[:3])}
    chosen = lambda step, tensor: bases[len(tensor)](step, tensor)  # noqa: E731
    params, optimizer = run(
        [Subspace([Remember(kind)], chosen, "transport")], 2, ((4, 3), (3, 3), (5,))
    )
    ages = [entries["age"] for entries in memory(params, optimizer)]
    assert ages == [1, 2, 2]


def test_a_projection_may_refuse_to_transport():
    class Refusing(Subspace):
        def transport(self, *args):
            return None

    inside = memory(*run([Refusing([Momentum()], given(OLD, NEW), "transport")], 2))[0]
    close(inside["momentum_buffer"], NEW.T @ draw(4, 3, seed=100))


def test_own_transport_gets_old_and_new():
    calls = []

    class Own(Subspace):
        def transport(self, tensors, kind, params, old_states, new_states, settings):
            calls.append((kind, [tuple(p.shape) for p in params]))
            old, new = old_states[0]["basis"], new_states[0]["basis"]
            return [torch.linalg.pinv(new) @ old @ tensor for tensor in tensors]

    inside = memory(*run([Own([Momentum()], given(OLD, NEW), "transport")], 2))[0]
    moved = torch.linalg.pinv(NEW) @ OLD @ OLD.T @ draw(4, 3)
    close(inside["momentum_buffer"], 0.9 * moved + NEW.T @ draw(4, 3, seed=100))
    assert calls == [("first", [(4, 3)])]


class CarryingItself(Subspace):
    """Memory moves by the small product of the two bases."""

    def transport(self, tensors, kind, params, old_states, new_states, settings):
        moved = []
        for tensor, old, new in zip(tensors, old_states, new_states, strict=True):
            moved.append((new["basis"].T @ old["basis"]) @ tensor)
        return moved


def test_transport_asks_for_no_shapes_it_does_not_need():
    """A projection of the whole update costs a product: a step takes one, refresh or not."""
    module = CarryingItself([Momentum()], given(OLD, NEW), "transport")
    inside = memory(*run([module], 2))[0]
    close(
        inside["momentum_buffer"],
        0.9 * NEW.T @ OLD @ OLD.T @ draw(4, 3) + NEW.T @ draw(4, 3, seed=100),
    )
    assert module.log[-6:] == ["refresh", "project update", "unproject update"] * 2


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((4, 3), (4, 5), (5,))])
def test_transport_finds_the_shapes_of_tensors_without_memory(shapes):
    """Of a route, modules have memory of some tensors only: zeros stand for the others."""
    route = Route({"shape==2x3": [Momentum()], "*": [Scale(1.0)]})
    module = CarryingItself([route], given(OLD, NEW), "transport")
    inside = memory(*run([module], 2, shapes), "0/modules/0/0")[0]
    close(
        inside["0/momentum_buffer"],
        0.9 * NEW.T @ OLD @ OLD.T @ draw(4, 3) + NEW.T @ draw(4, 3, seed=100),
    )


@pytest.mark.parametrize("policy", ["reset", "transport"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: [Merge(m)]], ids=["plain", "nested"])
def test_change_of_rank(policy, wrap):
    chain = wrap([Momentum(), Moments(), Scale()])
    params, optimizer = run([Subspace(chain, given(OLD, None, WIDER, None, OLD), policy)], 5)
    for entries in memory(params, optimizer, "0/modules")[:1]:
        for value in entries.values():
            assert not isinstance(value, torch.Tensor) or not value.isnan().any()
    assert all(bool(p.isfinite().all()) for p in params)


def test_change_of_rank_transports():
    inside = memory(*run([Subspace([Momentum()], given(OLD, WIDER), "transport")], 2))[0]
    first = OLD.T @ draw(4, 3)
    expected = 0.9 * WIDER.T @ OLD @ first + WIDER.T @ draw(4, 3, seed=100)
    close(inside["momentum_buffer"], expected)


@pytest.mark.parametrize("plan", [True, False])
def test_transport_through_a_vector(plan):
    """Memory of the merged vector is that of its pieces: the recipe and the plan agree."""
    for chain in ([Momentum(), Moments(), Scale()], [Remember("first", "second", scope="all")]):
        plain, _ = run([Subspace(list(chain), given(OLD, None, NEW), "transport")], 4)
        params = [Parameter(draw(*shape, seed=10 + i)) for i, shape in enumerate(SHAPES)]
        nested = Subspace([Merge(list(chain))], given(OLD, None, NEW), "transport")
        optimizer = Optimizer(params, nested)
        optimizer._use_passes(PASSES if plan else frozenset())
        for step in range(4):
            feed(params, step)
            optimizer.step()
        close(params, plain)


def test_transport_through_a_vector_moves_entries():
    chain = [Merge([Remember("first", "second", scope="all")])]
    params, optimizer = run([Subspace(chain, given(OLD, NEW), "transport")], 2)
    inside = memory(params, optimizer, f"{INSIDE}/modules/0")[0]
    first = flat([NEW.T @ OLD @ OLD.T @ draw(4, 3), draw(5, seed=1)])
    close(inside["first"], first)
    changed = torch.arange(len(first)) < 6
    close(inside["second"], torch.where(changed, first.abs(), first))
    assert inside["age"] == 2


def test_transport_through_scalars():
    plain, _ = run([Subspace([Momentum(), Scale()], given(OLD, None, NEW), "transport")], 4)
    params = [Parameter(draw(*shape, seed=10 + i)) for i, shape in enumerate(SHAPES)]
    nested = Subspace([Scalars([Momentum(), Scale()])], given(OLD, None, NEW), "transport")
    optimizer = Optimizer(params, nested)
    optimizer._use_passes(frozenset())
    for step in range(4):
        feed(params, step)
        optimizer.step()
    close(params, plain)


def test_transport_through_a_linear_projection():
    """First-order memory goes out by the inner map, over, and back in; the diagonal cannot."""
    chain = [Mix([Remember("first"), Remember("second")])]
    params, optimizer = run([Subspace(chain, given(OLD, NEW), "transport")], 2, ((4, 3),))
    first = memory(params, optimizer, f"{INSIDE}/modules/0")[0]
    mix = Mix.matrix(6)
    inner = mix.T @ flat([OLD.T @ draw(4, 3)])
    outside = (mix @ inner).reshape(2, 3)
    close(first["first"].flatten(), mix.T @ flat([NEW.T @ OLD @ outside]))
    second = memory(params, optimizer, f"{INSIDE}/modules/1")[0]
    assert (first["age"], second["age"]) == (2, 1)


def test_two_that_change():
    """The memory of a projection that is itself learnt begins anew inside one that changes."""
    inner = Subspace([Momentum(), Scale()], given(draw(2, 1, seed=4)))
    params, optimizer = run([Subspace([inner, Scale(1.0)], given(OLD, NEW), "transport")], 1)
    assert optimizer.state[params[0]][f"{INSIDE}/basis"].shape == (2, 1)
    feed(params, 1)
    optimizer.step()
    # Its basis is forgotten with its count of steps, so it learns again from step 0.
    assert optimizer.state[params[0]][f"{INSIDE}/step"] == 1
    assert all(bool(p.isfinite().all()) for p in params)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_one_map_for_all(policy):
    shapes = ((2, 2), (5,), (3, 1))
    old, new = draw(7, 2, seed=5), draw(7, 2, seed=6)
    params, optimizer = run([WholeSubspace([Momentum()], given(old, new), policy)], 2, shapes)
    grads = [flat([draw(2, 2, seed=100 * k), draw(3, 1, seed=100 * k + 2)]) for k in range(2)]
    first = {
        "keep": 0.9 * old.T @ grads[0],
        "reset": torch.zeros(2, dtype=torch.float64),
        "transport": 0.9 * new.T @ old @ old.T @ grads[0],
    }[policy]
    inside = memory(params, optimizer)
    close(inside[0]["momentum_buffer"], first + new.T @ grads[1])
    close(inside[1]["momentum_buffer"], 0.9 * draw(5, seed=1) + draw(5, seed=101))


def test_reset_under_a_wide_module_is_of_all_its_memory():
    """Memory that spans tensors makes no sense when a part of it has gone."""
    params, optimizer = run(
        [Subspace([Remember("first", scope="all")], given(OLD, NEW), "reset")], 2
    )
    assert [entries["age"] for entries in memory(params, optimizer)] == [1, 1]


class StackedSubspace(ProjectionBase):
    """Matrices of one shape as a stack, each in the same subspace."""

    on_refresh = "transport"
    batch_dims = 1

    def __init__(self, modules, bases):
        self.bases = bases
        super().__init__(modules)

    def init(self, tensor, settings):
        return {"step": 0}

    def refresh(self, tensors, params, grads, loss, states, settings):
        basis = self.bases(states[0]["step"], tensors[0])
        for state in states:
            state["step"] += 1
        return None if basis is None else [{"basis": basis} for _ in states]

    def project(self, tensors, params, grads, loss, states, settings, current):
        return [states[0]["basis"].T @ torch.stack(list(tensors))]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        (stack,) = projected_tensors
        return list((states[0]["basis"] @ stack).unbind())


def test_transport_of_a_stack():
    shapes = ((4, 3), (4, 3))
    stacked, _ = run([StackedSubspace([Momentum(), Scale()], given(OLD, NEW))], 3, shapes)
    single, _ = run([Subspace([Momentum(), Scale()], given(OLD, NEW), "transport")], 3, shapes)
    close(stacked, single)


def test_combine_of_a_stack_gets_stacks():
    class Residual(StackedSubspace):
        def combine(self, tensors, projected, result, params, *facts):
            inner = self.unproject(result, params, *facts, "update")
            plain = self.unproject(projected, params, *facts, "update")
            return [t - p + i for t, p, i in zip(tensors, plain, inner, strict=True)]

    shapes = ((4, 3), (4, 3))
    params, _ = run([Residual([Scale(1.0)], given(OLD)), Scale(1.0)], 1, shapes)
    bare, _ = run([Scale(1.0)], 1, shapes)
    close(params, bare)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
def test_a_parameter_that_comes_late(policy):
    """Without a gradient a tensor neither learns nor is touched; others go on."""
    chain = lambda: [Subspace([Momentum(), Scale()], given(OLD, NEW), policy)]  # noqa: E731
    shapes = ((4, 3), (4, 3))
    params, optimizer = run(chain(), 2, shapes, missing=(1,))
    alone, _ = run(chain(), 2, shapes[:1])
    close(params[0], alone[0])
    close(params[1], draw(4, 3, seed=11))
    feed(params, 2)
    optimizer.step()
    close(params[1], draw(4, 3, seed=11) - 0.05 * OLD @ OLD.T @ draw(4, 3, seed=201))


def test_policies_are_checked_by_their_projection():
    assert Subspace.on_refresh == "keep"
    assert issubclass(ProjcoreError, Exception)


@pytest.mark.parametrize("policy", ["keep", "reset", "transport"])
@pytest.mark.parametrize("kind", ["first", "second", "history", "opaque"])
def test_memory_inside_other_modules_moves_too(policy, kind):
    """Of a route some tensors have memory, others have none: each moves as without the route."""
    shapes = ((4, 3), (4, 5), (5,))
    bases = given(OLD, NEW)

    def chain():
        return [Remember(kind), Momentum(), Scale()]

    route = Route({"shape==2x3": chain(), "*": [Route({"*": chain()})]})
    routed, optimizer = run([Subspace([route], bases, policy)], 3, shapes)
    plain, twin = run([Subspace(chain(), bases, policy)], 3, shapes)
    close(routed, plain)
    moved = memory(routed, optimizer, "0/modules/0/0/0")[0]
    close(moved, memory(plain, twin)[0])


def test_a_cast_inside_carries_second_moments_too():
    """A point in a cast is the same point: nothing is reset that would not be without the cast."""
    shapes = ((4, 3), (5,))
    plain, optimizer = run(
        [Subspace([Moments(), Scale()], given(OLD, NEW), "transport")], 4, shapes
    )
    cast = Subspace([To([Moments()], torch.float64), Scale()], given(OLD, NEW), "transport")
    inside, twin = run([cast], 4, shapes)
    close(inside, plain)
    moved = memory(inside, twin, "0/modules/0/modules/0")[0]
    close(moved, memory(plain, optimizer)[0])
    assert moved["step"] == 4
