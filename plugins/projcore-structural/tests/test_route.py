"""Route: which modules run on which parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import projcore
from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, CheckpointError, SpecError
from projcore.testing.parts import Moments, Momentum, Scale, UnitNorm
from projcore_structural import Freeze, Route, VectorProjection


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()


def feed(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 5, dtype=torch.float64, generator=generator)
    model.zero_grad()
    model(inputs).square().mean().backward()


def train(
    model: nn.Module, optimizer: Optimizer, steps: range = range(5), before: Any = lambda: None
) -> list[Tensor]:
    for step in steps:
        feed(model, step)
        before()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def expect(
    model: nn.Module, *parts: tuple[Callable[[str, Tensor], bool], list[Any]]
) -> list[Tensor]:
    """The oracle: an optimizer of its own for each part of the parameters."""
    optimizers = [
        Optimizer([p for name, p in model.named_parameters() if chosen(name, p)], *modules)
        for chosen, modules in parts
    ]
    for step in range(5):
        feed(model, step)
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_route_is_an_optimizer_of_its_own() -> None:
    model, twin = make_model(), make_model()
    routes = {"*.weight ndim==2": [Moments(), Scale(0.1)], "*": [Momentum(), Scale(0.01)]}
    actual = train(model, Optimizer(model.named_parameters(), Route(routes)))
    expected = expect(
        twin,
        (lambda _, p: p.ndim == 2, [Moments(), Scale(0.1)]),
        (lambda _, p: p.ndim != 2, [Momentum(), Scale(0.01)]),
    )
    assert equal(actual, expected)


def test_a_wide_module_sees_its_own_route_only() -> None:
    model, twin = make_model(), make_model()
    inside = lambda: [VectorProjection([UnitNorm()]), Scale(0.1)]  # noqa: E731
    route = Route({"0.*": inside(), "2.*": inside(), "*": None})
    actual = train(model, Optimizer(model.named_parameters(), route, Scale(0.5)))
    expected = expect(
        twin,
        (lambda name, _: name.startswith("0."), [*inside(), Scale(0.5)]),
        (lambda name, _: name.startswith("2."), [*inside(), Scale(0.5)]),
        (lambda name, _: name.startswith("1."), [Scale(0.5)]),
    )
    assert equal(actual, expected)


def test_rules_may_be_functions() -> None:
    model, twin = make_model(), make_model()

    def small(name: str | None, tensor: Tensor) -> bool:
        assert tensor.is_meta  # shapes count, values do not
        return tensor.numel() < 5

    actual = train(model, Optimizer(model.parameters(), Route({small: Freeze(), "*": Scale(0.1)})))
    expected = expect(twin, (lambda _, p: p.numel() >= 5, [Scale(0.1)]))
    assert equal(actual, expected)


def test_it_works_inside_and_around_projections() -> None:
    model, twin = make_model(), make_model()
    route = Route(
        {"*.bias": Scale(0.1), "ndim==2": VectorProjection([UnitNorm(), Scale()]), "*": None}
    )
    to = projcore.registry.load("projection", "to")
    actual = train(model, Optimizer(model.named_parameters(), to([route], torch.float32), Scale()))
    expected = expect(
        twin,
        (lambda name, _: name.endswith(".bias"), [to([Scale(0.1)], torch.float32), Scale()]),
        (
            lambda _, p: p.ndim == 2,
            [to([VectorProjection([UnitNorm(), Scale()])], torch.float32), Scale()],
        ),
        (lambda name, _: name == "1.weight", [to([Scale(1.0)], torch.float32), Scale()]),
    )
    assert equal(actual, expected)


def test_a_merged_tensor_has_a_shape_but_no_name() -> None:
    model = make_model()
    fine = VectorProjection([Route({"ndim==1": UnitNorm()}), Scale()])
    train(model, Optimizer(model.named_parameters(), fine))
    with pytest.raises(ArgumentError, match=r"'0\.\*' asks for a name.*made from several"):
        Optimizer(model.named_parameters(), VectorProjection([Route({"0.*": UnitNorm()})]))


def test_routes_nest() -> None:
    model, twin = make_model(), make_model()
    inner = Route({"ndim==2": Scale(0.2), "*": Scale(0.3)})
    actual = train(
        model, Optimizer(model.named_parameters(), Route({"0.*": inner, "*": Scale(0.4)}))
    )
    expected = expect(
        twin,
        (lambda name, _: name == "0.weight", [Scale(0.2)]),
        (lambda name, _: name == "0.bias", [Scale(0.3)]),
        (lambda name, _: not name.startswith("0."), [Scale(0.4)]),
    )
    assert equal(actual, expected)


def test_parameters_without_a_gradient_stay() -> None:
    model = make_model()
    optimizer = Optimizer(model.named_parameters(), Route({"*.weight": Momentum(), "*": Moments()}))
    before = model[0].bias.detach().clone()

    def drop() -> None:
        model[0].bias.grad = None

    train(model, optimizer, before=drop)
    assert torch.equal(model[0].bias, before)
    assert not torch.equal(model[2].bias, make_model()[2].bias)


@pytest.mark.parametrize(
    ("routes", "named", "words"),
    [
        ({"*.weight": None}, True, "no rule for 0.bias (4); its rules are '*.weight'"),
        (
            {"*.wieght": None, "*": None},
            True,
            "'*.wieght' of Route matches none. There are 0.weight",
        ),
        ({"*": None, "ndim==2": None}, True, "'ndim==2' of Route comes too late"),
        ({"*.weight": None, "*": None}, False, "without names"),
        ({"ndims==2": None}, True, "compares 'ndims'. Did you mean 'ndim'?"),
        ({"ndim==two": None}, True, "must be a whole number"),
        ({"dtype==float33": None}, True, "no dtype of torch"),
        ({"shape<3x3": None}, True, "compared with == or !="),
        ({"type==Linear": None}, True, "param_groups"),
        ({"": None}, True, "A rule is empty"),
        ({}, True, "was given no rules"),
    ],
)
def test_wrong_rules_are_refused_when_built(routes: Any, named: bool, words: str) -> None:
    model = make_model()
    params = model.named_parameters() if named else model.parameters()
    with pytest.raises(ArgumentError) as caught:
        Optimizer(params, Route(routes))
    assert words in str(caught.value)


@pytest.mark.parametrize("named", [True, False])
def test_a_last_rule_for_all_may_match_nothing(named: bool) -> None:
    """One table fits models with biases and models without."""
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)).double()
    twin = copy.deepcopy(model)
    params = model.named_parameters() if named else model.parameters()
    routes = {"ndim==2": [Moments(), Scale(0.1)], "*": Momentum()}
    actual = train(model, Optimizer(params, Route(routes)))
    assert equal(actual, expect(twin, (lambda *_: True, [Moments(), Scale(0.1)])))
    with pytest.raises(ArgumentError, match=r"'ndim==1' of Route matches none"):
        Optimizer(model.parameters(), Route({"ndim==1": None, "*": None}))


def test_a_group_may_name_its_route() -> None:
    model, twin = make_model(), make_model()
    routes = {"ndim==2": [Moments(), Scale(0.1)], "*": [Momentum(), Scale(0.01)]}
    groups = [
        {"params": model[0].parameters(), "route": 1},
        {"params": [model[1].weight], "route": 0},
        {"params": [model[1].bias, *model[2].parameters()]},
    ]
    optimizer = Optimizer(groups, Route(routes))
    routed = [
        line.partition("0: ")[2].split()[0] for line in optimizer.describe().splitlines()[2:8]
    ]
    assert routed == ["*", "*", "ndim==2", "*", "ndim==2", "*"]
    actual = train(model, optimizer)
    first = {"1.weight", "2.weight"}
    expected = expect(
        twin,
        (lambda name, _: name in first, [Moments(), Scale(0.1)]),
        (lambda name, _: name not in first, [Momentum(), Scale(0.01)]),
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    optimizer.param_groups[0]["route"] = 0  # with memory of its own there
    train(model, optimizer, range(5, 7))
    assert any(key.startswith("0/0/") for key in optimizer.state[model[0].weight])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_compiled_steps_go_the_way_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ends = []
    for compile in (False, True):
        model = make_model()
        groups = [
            {"params": model[0].parameters(), "route": 1},
            {"params": [*model[1].parameters(), *model[2].parameters()]},
        ]
        route = Route({"ndim==2": Scale(0.1), "*": Scale(0.01)})
        optimizer = Optimizer(groups, route, compile=compile)
        train(model, optimizer, range(3))
        optimizer.param_groups[0]["route"] = 0
        ends.append(train(model, optimizer, range(3, 6)))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("route", [2, -1, True, "*", 0.0])
def test_a_route_that_is_none_is_refused(route: Any) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "route": route}]
    with pytest.raises(ArgumentError, match=r"index of a rule, from 0 to 1, or None to apply"):
        Optimizer(groups, Route({"ndim==2": None, "*": None}))


@pytest.mark.parametrize("routes", ["*", [("*", None)], {3: None}])
def test_wrong_types_are_refused(routes: Any) -> None:
    with pytest.raises(ArgumentTypeError):
        Route(routes)


def test_a_late_group_is_checked_before_it_is_added() -> None:
    model, late = make_model(), nn.Parameter(torch.ones(2, 2, 2))
    optimizer = Optimizer(
        model.named_parameters(), Route({"ndim==2": Moments(), "ndim==1": Momentum()})
    )
    with pytest.raises(ArgumentError, match=r"no rule for late \(2 x 2 x 2\)"):
        optimizer.add_param_group({"params": [("late", late)]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [("late", nn.Parameter(torch.ones(2, 2)))]})
    train(model, optimizer)


def test_describe_says_what_went_where() -> None:
    model = make_model()
    route = Route(
        {"*.weight ndim==2": VectorProjection([UnitNorm(), Moments()]), "*": [Momentum()]}
    )
    optimizer = Optimizer(model.named_parameters(), route)
    table = [line.split() for line in optimizer.describe().splitlines()]
    header = ["parameter", "shape", "dtype", "group", "route", "inside", "state", "bytes"]
    assert table[0] == header
    assert " ".join(table[2]) == "0.weight 4 x 5 float64 0 0: *.weight ndim==2 32 328"
    assert " ".join(table[3]) == "0.bias 4 float64 0 0: * 32"


def test_settings_reach_each_route() -> None:
    model = make_model()
    route = Route({"ndim==2": Scale(0.1), "*": Scale(0.2)})
    optimizer = Optimizer(model.named_parameters(), route)
    assert {"0.0.lr", "0.1.lr"} <= set(optimizer.param_groups[0])
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.param_groups[0]["0.1.lr"] = 0.0
    after = train(model, optimizer)
    moved = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert moved == [p.ndim == 2 for p in before]


def test_it_is_written_as_a_spec() -> None:
    text = "route({'*.weight ndim==2': [sign(), lr(0.1)], '*': None})"
    spec = {"route": {"routes": {"*.weight ndim==2": ["sign", {"lr": 0.1}], "*": None}}}
    assert str(projcore.build(text)) == text
    assert projcore.build(text).spec() == spec
    rebuilt = projcore.build(json.loads(json.dumps(spec)))
    model, twin = make_model(), make_model()
    assert equal(
        train(model, Optimizer(model.named_parameters(), rebuilt)),
        train(twin, Optimizer(twin.named_parameters(), text)),
    )
    with pytest.raises(SpecError):
        Route({lambda name, tensor: True: Freeze()}).spec()


def test_resume_checks_the_routes() -> None:
    model = make_model()
    routes = {"*.weight": Moments(), "*": Momentum()}
    optimizer = Optimizer(model.named_parameters(), Route(routes))
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    twin = make_model()
    twin.load_state_dict(model.state_dict())
    resumed = Optimizer(twin.named_parameters(), Route(routes))
    resumed.load_state_dict(saved)
    assert equal(train(model, optimizer, range(5, 9)), train(twin, resumed, range(5, 9)))
    other = Optimizer(twin.named_parameters(), Route({"0.*": Moments(), "*": Momentum()}))
    with pytest.raises(CheckpointError, match="treats the parameter otherwise"):
        other.load_state_dict(saved)


def test_one_graph() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, twin = make_model(), make_model()
    routes = {"*.weight ndim==2": [Moments(), Scale(0.1)], "*": [Momentum(), Scale(0.01)]}
    optimizer = Optimizer(model.named_parameters(), Route(routes))
    compiler = torch.compile
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(compiler, backend=backend, fullgraph=True))
        compiled = Optimizer(twin.named_parameters(), Route(routes), compile=True)
        actual = train(twin, compiled)
    torch._dynamo.reset()
    assert len(graphs) == 1
    for one, other in zip(actual, train(model, optimizer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_groups_of_a_model() -> None:
    model = make_model()
    groups = projcore.param_groups(
        model,
        {
            "type==Linear ndim==2 !0.*": {"weight_decay": 0.1},
            "type==LayerNorm": {},
            "shape==4x*": {"lr": 0.5},
            "*": {},
        },
    )
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["2.weight"],
        ["1.weight", "1.bias"],
        ["0.weight"],
        ["0.bias", "2.bias"],
    ]
    assert groups[0]["weight_decay"] == 0.1
    optimizer = torch.optim.AdamW(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 0.5, 1e-3]
    assert optimizer.param_groups[0]["param_names"] == ["2.weight"]
    with pytest.raises(ArgumentError, match="of param_groups matches none"):
        projcore.param_groups(model, {"type==Conv2d": {}, "*": {}})


def test_routes_by_type_go_through_groups() -> None:
    """Only the model knows types: it makes the groups, and the rules are about those."""
    model, twin = make_model(), make_model()
    groups = projcore.param_groups(model, {"type==LayerNorm": {}, "*": {}})
    route = Route({"group==0": Scale(0.1), "*": Scale(0.2)})
    actual = train(model, Optimizer(groups, VectorProjection([route], by="group")))
    expected = expect(
        twin,
        (lambda name, _: name.startswith("1."), [Scale(0.1)]),
        (lambda name, _: not name.startswith("1."), [Scale(0.2)]),
    )
    assert equal(actual, expected)
    with pytest.raises(ArgumentError, match="made from several"):
        Optimizer(projcore.param_groups(model, {"ndim==2": {}, "*": {}}), VectorProjection([route]))


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    (group,) = projcore.param_groups(model, {"*": {}})
    assert [name for name, _ in group["params"]] == ["0.weight", "0.bias", "1.bias"]
