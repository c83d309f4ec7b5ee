"""Several vectors: by group, by dtype, by rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from projcore import Optimizer, build
from projcore.errors import ArgumentError, CheckpointError
from projcore.testing.map import Map
from projcore.testing.parts import Merge, Moments, Scale, UnitNorm
from projcore.testing.strategies import tensor_lists
from projcore_structural import Route, VectorProjection


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()


def train(model: nn.Module, optimizer: Optimizer, steps: range = range(4)) -> list[Tensor]:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return [param.detach().clone() for param in model.parameters()]


def apart(chosen: list[list[int]], *modules: Any) -> list[Tensor]:
    """The oracle: an optimizer of its own for each vector."""
    model = make_model()
    params = list(model.parameters())
    for indices in chosen:
        part = nn.ParameterList([params[i] for i in indices])
        optimizer = Optimizer(part.parameters(), VectorProjection(list(modules)), Scale())
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                grad = torch.randn(param.shape, generator=generator).to(param.dtype)
                param.grad = grad
            optimizer.step()
    return [param.detach() for param in params]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


GROUPS = [[0, 3], [1, 2, 4], [5]]


def by_group(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": [params[i] for i in indices]} for indices in GROUPS]


def test_each_group_is_a_vector() -> None:
    model = make_model()
    inner = VectorProjection([UnitNorm(), Moments()], by="group")
    actual = train(model, Optimizer(by_group(model), inner, Scale()))
    assert equal(actual, apart(GROUPS, UnitNorm(), Moments()))


def test_groups_may_differ() -> None:
    """As one vector they could not: `clip_norm` needs one setting for it."""
    model = make_model()
    groups = by_group(model)
    for group, max_norm in zip(groups, (0.1, 0.2, 0.3), strict=True):
        group["max_norm"] = max_norm
    before = [p.detach().clone() for p in model.parameters()]
    inner = ["clip_norm(1.0, per_tensor=True)"]
    after = train(model, Optimizer(groups, VectorProjection(inner, by="group")), range(1))
    for indices, max_norm in zip(GROUPS, (0.1, 0.2, 0.3), strict=True):
        moved = torch.cat([(after[i] - before[i]).reshape(-1) for i in indices])
        assert float(moved.norm()) == pytest.approx(max_norm)
    with pytest.raises(ArgumentError, match="disagree: max_norm"):
        Optimizer(groups, VectorProjection(inner))


def test_each_rule_is_a_vector() -> None:
    model = make_model()
    inner = VectorProjection([UnitNorm(), Moments()], by=["0.*", "*.bias", "*"])
    actual = train(model, Optimizer(model.named_parameters(), inner, Scale()))
    assert equal(actual, apart([[0, 1], [3, 5], [2, 4]], UnitNorm(), Moments()))


@pytest.mark.parametrize("by", ["dtype", ["dtype==bfloat16", "*"]], ids=str)
def test_each_dtype_is_a_vector(by: Any) -> None:
    model = make_model()
    model[0].bfloat16()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = Optimizer(model.parameters(), VectorProjection([UnitNorm()], by=by))
    after = train(model, optimizer, range(1))
    for indices, tolerance in (([0, 1], 1e-2), ([2, 3, 4, 5], 1e-12)):
        moved = [(after[i].double() - before[i].double()).reshape(-1) for i in indices]
        assert float(torch.cat(moved).norm()) == pytest.approx(1, abs=tolerance)
    with pytest.raises(ArgumentError, match="several dtypes"):
        Optimizer(model.parameters(), VectorProjection([UnitNorm()]))


def test_a_module_for_all_tensors_sees_all_vectors() -> None:
    """`clip_norm` of all is the same in one vector and in many."""
    ends = []
    for by in ("all", "group", ["ndim==2", "*"]):
        model = make_model()
        inner = VectorProjection(["clip_norm(0.5)"], by=by)
        ends.append(train(model, Optimizer(by_group(model), inner)))
    for end in ends[1:]:
        for one, other in zip(ends[0], end, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_lbfgs_over_two_vectors_is_lbfgs_over_one() -> None:
    def minimise(by: Any) -> Tensor:
        x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        y = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
        inner = VectorProjection(["lbfgs()", "strong_wolfe()"], by=by)
        optimizer = Optimizer([x, y], inner)

        def closure(backward: bool = True) -> Tensor:
            loss = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + (y - x[1]).square().sum()
            if backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        for _ in range(50):
            optimizer.step(closure)
        return torch.cat([x.detach(), y.detach().reshape(-1)])

    torch.testing.assert_close(minimise(["ndim==2", "*"]), torch.ones(3).double())
    torch.testing.assert_close(minimise("all"), minimise(["ndim==2", "*"]), rtol=1e-8, atol=0)


def test_it_resumes_and_is_checked() -> None:
    model, twin = make_model(), make_model()
    build_one = lambda m, by: Optimizer(  # noqa: E731
        m.named_parameters(), VectorProjection([UnitNorm(), Moments(), UnitNorm()], by=by), Scale()
    )
    optimizer = build_one(model, ["*.bias", "*"])
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    twin.load_state_dict(model.state_dict())
    resumed = build_one(twin, ["*.bias", "*"])
    resumed.load_state_dict(saved)
    assert equal(train(model, optimizer, range(4, 7)), train(twin, resumed, range(4, 7)))
    with pytest.raises(CheckpointError, match="treats the parameter otherwise"):
        build_one(twin, ["0.*", "*"]).load_state_dict(saved)


def test_a_late_group_is_a_vector_of_its_own() -> None:
    model, late = make_model(), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = Optimizer(model.parameters(), VectorProjection([UnitNorm()], by="group"))
    train(model, optimizer, range(1))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(late.detach(), -torch.tensor([0.0, 0.6, 0.8]).double())


def test_it_works_inside_a_route_and_a_projection() -> None:
    model, twin = make_model(), make_model()
    vectors = VectorProjection([UnitNorm()], by=["ndim==2", "*"])
    route = Route({"1.*": None, "*": vectors})
    actual = train(model, Optimizer(model.named_parameters(), route, Scale()))
    same = Route({"1.*": None, "ndim==2": Merge([UnitNorm()]), "*": Merge([UnitNorm()])})
    assert equal(actual, train(twin, Optimizer(twin.named_parameters(), same, Scale())))


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("groups", "one of 'all', 'group', 'dtype'"),
        ([], "no rules"),
        (["ndim==2"], "no rule for 0.bias"),
        (["ndim==2", "*.weight", "*", "*.bias"], "'*.bias' of VectorProjection comes too late"),
        (["ndims==2", "*"], "Did you mean 'ndim'"),
    ],
)
def test_wrong_choices_are_refused(by: Any, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Optimizer(make_model().named_parameters(), VectorProjection([UnitNorm()], by=by))
    assert words in str(caught.value)


def test_it_is_written_as_a_spec() -> None:
    text = "vector([sign()], by=['ndim==2', '*'])"
    assert str(build(text)) == text


@settings(max_examples=40, deadline=None)
@given(tensor_lists(dtypes=(torch.float32, torch.bfloat16, torch.complex64), max_tensors=6))
def test_a_vector_for_each_dtype_holds_all_elements(tensors: list[Tensor]) -> None:
    made = Map(VectorProjection([Moments()], by="dtype"), tensors)
    inside = made.project(tensors, "update")
    assert [v.dtype for v in inside] == list(dict.fromkeys(t.dtype for t in tensors))
    for vector in inside:
        same = [tensor.reshape(-1) for tensor in tensors if tensor.dtype == vector.dtype]
        assert torch.equal(vector, torch.cat(same))
    assert all(map(torch.equal, made.unproject(inside, "update"), tensors))
