"""Tensors that a projection does not apply to, and tensors made from several."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from projcore import Module, Optimizer, ProjectionBase
from projcore.errors import ArgumentError, ContractError
from projcore.projections import VectorProjection
from projcore.testing.parts import Moments, Momentum, Scale, UnitNorm
from tests.kernel_projection.subspace import Subspace, WholeSubspace, from_data, given


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start(*shapes):
    return [Parameter(draw(*shape, seed=10 + i)) for i, shape in enumerate(shapes)]


def feed(params, step, missing=()):
    for i, param in enumerate(params):
        param.grad = None if i in missing else draw(*param.shape, seed=100 * step + i)


def run(optimizer, params, steps, missing=()):
    for step in steps:
        feed(params, step, missing)
        optimizer.step()
    return params


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


class Shapes(Module):
    """Hands the update on; notes the shapes that it sees."""

    scope = "element"

    def __init__(self):
        self.seen = []
        super().__init__()

    def step(self, update, objective, state):
        self.seen.append([tuple(tensor.shape) for tensor in update])
        facts = (objective.params, objective.grads, objective.template)
        assert all([tuple(t.shape) for t in fact] == self.seen[-1] for fact in facts)
        return update


SHAPES = ((4, 3), (5,), (3, 3), ())


@pytest.mark.parametrize("cls", [Subspace, WholeSubspace])
def test_others_pass_to_the_same_modules(cls):
    """And do there what they do outside."""
    inside, outside = start(*SHAPES), start(*SHAPES)
    bases = given(draw(21, 2)) if cls is WholeSubspace else from_data()
    run(Optimizer(inside, cls([Momentum(), Moments(), Scale()], bases)), inside, range(4))
    run(Optimizer(outside, Momentum(), Moments(), Scale()), outside, range(4))
    for i in (1, 3):
        assert torch.equal(inside[i], outside[i])
    for i in (0, 2):
        assert not torch.equal(inside[i], outside[i])


@pytest.mark.parametrize(
    ("cls", "bases", "shapes"),
    [
        (Subspace, from_data(), [(2, 3), (5,), (2, 3), ()]),
        # Of scope "all": what was projected comes first, then what passes.
        (WholeSubspace, given(draw(21, 2)), [(2,), (5,), ()]),
    ],
)
def test_what_modules_inside_see(cls, bases, shapes):
    spy, params = Shapes(), start(*SHAPES)
    chain = [spy, Momentum(), Scale()]
    projection = cls(chain, bases, project_params=True, project_grad=True)
    run(Optimizer(params, projection), params, range(2))
    assert spy.seen == [shapes, shapes]


@pytest.mark.parametrize("cls", [Subspace, WholeSubspace])
def test_memory_is_kept_with_its_parameter(cls):
    params = start((5,), (4, 3), ())
    bases = given(draw(12, 2)) if cls is WholeSubspace else from_data()
    optimizer = Optimizer(params, cls([Momentum()], bases))
    run(optimizer, params, range(1))
    key = "0/modules/0/momentum_buffer"
    inside = (2,) if cls is WholeSubspace else (2, 3)
    assert [tuple(optimizer.state[p][key].shape) for p in params] == [(5,), inside, ()]


def test_applying_to_nothing_is_an_error():
    with pytest.raises(ArgumentError, match=r"applies to none of its 2 tensors, of shapes \(5,\)"):
        Optimizer(start((5,), ()), Subspace([Scale()]))


def test_a_group_may_switch_it_off():
    inside, outside = start((4, 3), (4, 3)), start((4, 3), (4, 3))
    groups = [{"params": inside[:1]}, {"params": inside[1:], "off": True}]
    run(Optimizer(groups, Subspace([Momentum(), Scale()])), inside, range(3))
    run(Optimizer(outside, Momentum(), Scale()), outside, range(3))
    assert torch.equal(inside[1], outside[1])
    assert not torch.equal(inside[0], outside[0])


def test_a_group_may_not_switch_it_off_for_all():
    with pytest.raises(ArgumentError, match="applies to none"):
        Optimizer([{"params": start((4, 3)), "off": True}], Subspace([Scale()]))


@pytest.mark.parametrize("cls", [Subspace, WholeSubspace])
def test_only_what_passes_has_a_gradient(cls):
    inside, outside = start((4, 3), (5,)), start((4, 3), (5,))
    bases = given(draw(12, 2), draw(12, 2)) if cls is WholeSubspace else from_data()
    run(Optimizer(inside, cls([Momentum(), Scale()], bases)), inside, range(2), missing=(0,))
    run(Optimizer(outside, Momentum(), Scale()), outside, range(2), missing=(0,))
    assert torch.equal(inside[0], outside[0])
    close(inside[1], outside[1])


def test_refresh_gets_tensors_with_a_gradient_only():
    seen = []

    class Noting(Subspace):
        def refresh(self, tensors, params, grads, loss, states, settings):
            if not any(t.is_meta for t in tensors):  # as they are in a plan
                seen.append([tuple(t.shape) for t in tensors])
            assert len(tensors) == len(params) == len(states) == len(settings)
            return super().refresh(tensors, params, grads, loss, states, settings)

    params = start((4, 3), (5,), (3, 3))
    optimizer = Optimizer(params, Noting([Scale()]))
    run(optimizer, params, range(1), missing=(2,))
    run(optimizer, params, range(1), missing=(0, 2))
    run(optimizer, params, range(1))
    assert seen == [[(4, 3)], [(4, 3), (3, 3)]]


def test_a_wide_module_inside_sees_gradients_come_and_go():
    """Its memory goes with the parameters: what was seen before is there again."""

    class Sums(Module):
        needs = frozenset()

        def init(self, tensor, settings):
            return {"sum": torch.zeros_like(tensor)}

        def step(self, update, objective, state):
            self.create_state(objective, state)
            for entries, tensor in zip(state.entries, update, strict=True):
                entries["sum"] = entries["sum"] + tensor
            return [entries["sum"] for entries in state.entries]

    for layout in (lambda m: [Subspace(m, given(draw(4, 2)))], lambda m: m):
        params = start((4, 3), (4, 3))
        optimizer = Optimizer(params, *layout([Sums()]), Scale())
        for step, missing in enumerate([(), (0,), (1,), ()]):
            before = [p.detach().clone() for p in params]
            run(optimizer, params, [step], missing)
            assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [
                i in missing for i in range(2)
            ]


def test_a_new_group_leaves_the_memory_inside_alone():
    """Also beside a module of scope "all": only what changes its shape begins anew for all."""

    class Wide(Shapes):
        scope = "all"

    params, (alone,) = start((4, 3), (4, 3)), start((4, 3))
    basis = draw(4, 2)
    optimizer, plain = (
        Optimizer([param], Subspace([Momentum(), Wide()], given(basis)))
        for param in (params[0], alone)
    )
    run(optimizer, params[:1], range(2))
    optimizer.add_param_group({"params": params[1:]})
    run(optimizer, params, [2])
    run(plain, [alone], range(3))
    assert torch.equal(params[0], alone)


@pytest.mark.parametrize("which", [0, 1])
def test_memory_made_from_all_begins_anew_when_one_is_switched_off_or_on(which):
    """Whichever it is kept with: as if the optimizer were new."""

    def make(params, off):
        merged = VectorProjection([Momentum(), UnitNorm()])  # without the norm it would not be
        groups = [{"params": [p], "off": off and i == which} for i, p in enumerate(params)]
        return Optimizer(groups, Subspace([merged], given(draw(4, 2))))

    params = start((4, 3), (4, 3))
    optimizer = make(params, False)
    run(optimizer, params, range(2))
    for step, off in ((2, True), (3, False)):
        others = [Parameter(param.detach().clone()) for param in params]
        optimizer.param_groups[which]["off"] = off
        run(optimizer, params, [step])
        new = make(others, off)
        run(new, others, [step])
        assert all(map(torch.equal, params, others))
        for param, other in zip(params, others, strict=True):
            mine, theirs = optimizer.state[param], new.state[other]
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[k], theirs[k]) for k in mine if "momentum" in k)


class ByShape(ProjectionBase):
    """Adds up tensors of one shape: each tensor inside is made from all of that shape."""

    def __init__(self, modules):
        super().__init__(modules, project_params=True, project_grad=True)

    def rows(self, tensors):
        rows = {}
        for i, tensor in enumerate(tensors):
            rows.setdefault(tuple(tensor.shape), []).append(i)
        return list(rows.values())

    def applies(self, tensor, settings):
        return tensor.ndim > 0

    def origins(self, params, states, settings, projected):
        return self._origins

    def project(self, tensors, params, *_, **__):
        self._origins = self.rows(tensors)  # only these tests may write on a recipe
        return [torch.stack([tensors[i] for i in row]) for row in self._origins]

    def unproject(self, projected_tensors, params, *_, **__):
        result = [None] * len(params)
        for row, stack in zip(self.rows(params), projected_tensors, strict=True):
            for i, tensor in zip(row, stack, strict=True):
                result[i] = tensor
        return result


ORIGIN_SHAPES = ((3,), (2, 2), (3,), (), (2, 2), (4,))


def test_origins_of_memory():
    """What is made from several is kept with the first of them."""
    params = start(*ORIGIN_SHAPES)
    optimizer = Optimizer(params, ByShape([Momentum(), Scale()]))
    run(optimizer, params, range(1))
    key = "0/modules/0/momentum_buffer"
    shapes = [
        tuple(optimizer.state[p][key].shape) if key in optimizer.state[p] else None for p in params
    ]
    assert shapes == [(2, 3), (2, 2, 2), None, (), None, (1, 4)]
    outside = start(*ORIGIN_SHAPES)
    run(Optimizer(outside, Momentum(), Scale()), outside, range(3))
    close(run(optimizer, params, range(1, 3)), outside)


def test_origins_of_settings():
    """Groups may differ where they are not put together."""
    params = start(*ORIGIN_SHAPES)
    apart = [
        {"params": [params[i] for i in row], "lr": 0.1 * (k + 1)}
        for k, row in enumerate([(0, 2), (1, 4), (3,), (5,)])
    ]
    outside = start(*ORIGIN_SHAPES)
    bare = [
        {**group, "params": [outside[i] for i in row]}
        for group, row in zip(apart, [(0, 2), (1, 4), (3,), (5,)], strict=True)
    ]
    run(Optimizer(apart, ByShape([Momentum(), Scale()])), params, range(2))
    run(Optimizer(bare, Momentum(), Scale()), outside, range(2))
    close(params, outside)

    together = start(*ORIGIN_SHAPES)
    groups = [{"params": together[:1], "lr": 0.1}, {"params": together[1:], "lr": 0.2}]
    with pytest.raises(ArgumentError, match=r"disagree: lr is 0\.1 in one and 0\.2"):
        Optimizer(groups, ByShape([Momentum(), Scale()]))


def test_origins_of_gradients():
    """A tensor inside is left alone only if none that it is made from has a gradient."""
    spy = Shapes()
    params, outside = start(*ORIGIN_SHAPES), start(*ORIGIN_SHAPES)
    optimizer = Optimizer(params, ByShape([spy, Momentum(), Scale()]))
    bare = Optimizer(outside, Momentum(), Scale())
    run(optimizer, params, range(1), missing=(0, 1, 4))
    run(bare, outside, range(1), missing=(0, 1, 4))
    close(params, outside)
    run(optimizer, params, [1])
    before = [optimizer.state[params[i]]["0/modules/1/momentum_buffer"].clone() for i in (1, 0)]
    run(optimizer, params, [2], missing=(0, 1, 4, 5))
    after = [optimizer.state[params[i]]["0/modules/1/momentum_buffer"] for i in (1, 0)]
    assert torch.equal(after[0], before[0])  # of 1 and 4, none of which has one
    assert not torch.equal(after[1], before[1])  # of 0 and 2, which has one


def test_scope_tensor_gives_one_for_each():
    class Twice(Subspace):
        def project(self, *args):
            return 2 * super().project(*args)

    with pytest.raises(ContractError, match="returned 2 tensors for 1 tensors"):
        Optimizer(start((4, 3)), Twice([Scale()]))


def test_scope_tensor_gives_no_stack():
    class Stacked(Subspace):
        batch_dims = 1

    with pytest.raises(ContractError, match=r'batch_dims = 1 and scope = .*scope = "all"'):
        Stacked([Scale()])


def test_a_tensor_in_place_of_a_list():
    class Stacked(WholeSubspace):
        def project(self, *args):
            return torch.stack(super().project(*args))

    with pytest.raises(ContractError, match=r"Stacked.project returned a tensor.*batch_dims = 1"):
        Optimizer(start((4, 3)), Stacked([Scale()], given(draw(12, 2))))


def test_a_stack_and_what_passes():
    class Stacked(WholeSubspace):
        batch_dims = 1

        def project(self, *args):
            return [torch.stack(super().project(*args))]

    with pytest.raises(ContractError, match="does not apply to 1 tensors, which are not batches"):
        Optimizer(start((4, 3), (5,)), Stacked([Scale()], given(draw(12, 2))))


@pytest.mark.parametrize("cls", [Subspace, WholeSubspace])
def test_unproject_of_another_number(cls):
    class Twice(cls):
        def unproject(self, *args):
            return 2 * super().unproject(*args)

    params = start((4, 3), (3, 3))
    optimizer = Optimizer(
        params, Twice([Scale()], given(draw(21, 2)) if cls is WholeSubspace else None)
    )
    with pytest.raises(ContractError, match=r"Twice.*4.*2"):
        run(optimizer, params, range(1))


def test_unproject_of_another_shape():
    class Transposed(Subspace):
        def unproject(self, *args):
            return [tensor.T for tensor in super().unproject(*args)]

    params = start((4, 3), (3, 3))
    optimizer = Optimizer(params, Transposed([Scale()]))
    with pytest.raises(ContractError, match=r"Transposed.*shape \(3, 4\)"):
        run(optimizer, params, range(1))


def test_tensor_scope_modules_inside_treat_each_by_itself():
    inside, outside = start((4, 3), (5,)), start((4, 3), (5,))
    basis = draw(4, 2)
    run(Optimizer(inside, Subspace([UnitNorm(), Scale()], given(basis))), inside, range(1))
    run(Optimizer(outside, UnitNorm(), Scale()), outside, range(1))
    close(inside[1], outside[1])
    down = basis.T @ draw(4, 3)
    close(inside[0], draw(4, 3, seed=10) - 0.05 * basis @ down / (down.norm() + 1e-12))


class Halves(ProjectionBase):
    """Stacks the halves of each tensor."""

    geometry = "layout"
    batch_dims = 1

    def origins(self, params, states, settings, projected):
        return [[i] for i in range(projected)]

    def project(self, tensors, *_, **__):
        return [tensor.reshape(2, -1) for tensor in tensors]

    def unproject(self, projected_tensors, params, *_, **__):
        pairs = zip(projected_tensors, params, strict=True)
        return [tensor.reshape(param.shape) for tensor, param in pairs]


def test_a_list_of_stacks():
    """Of several shapes; the entries are tensors of their own, and each stack has its origin."""
    params = [Parameter(torch.ones(4, 3)), Parameter(torch.ones(6))]
    groups = [{"params": params[:1], "0.modules.0.lr": 0.5}, {"params": params[1:]}]
    optimizer = Optimizer(groups, Halves([Scale(1.0), UnitNorm()]), Scale(1.0))
    optimizer._use_passes(frozenset())
    for param in params:
        param.grad = torch.arange(1.0, param.numel() + 1).reshape(param.shape)
    optimizer.step()
    for param in params:
        halves = param.grad.reshape(2, -1)
        expected = 1 - halves / halves.norm(dim=1, keepdim=True)
        torch.testing.assert_close(param.detach().reshape(2, -1), expected)
