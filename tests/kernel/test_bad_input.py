"""Bad input is refused with a sentence, before anything changes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, ProjectionBase, Transform, errors, require
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, Backtracking, ClipNorm, HeavyBall
from projcore.projections import VectorProjection


class Reader(Transform):
    """Needs what it is told to need."""

    scope = "all"

    def __init__(self, needs: frozenset[Any]) -> None:
        self.needs = needs
        super().__init__()

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        assert ("loss" in self.needs) == (facts[2] is not None)
        return tensors


class Half(ProjectionBase):
    """Hands in half of each tensor, and by default neither parameters nor gradients."""

    scope = "tensor"

    def project(self, tensors: list[Tensor], *args: Any) -> list[Tensor]:
        return [tensor / 2 for tensor in tensors]

    def unproject(self, projected_tensors: Iterable[Tensor], *args: Any) -> list[Tensor]:
        return [tensor * 2 for tensor in projected_tensors]


def consumed() -> Iterable[Parameter]:
    params = iter([Parameter(torch.ones(2))])
    next(params)
    return params


ONE = Parameter(torch.ones(2))
OTHER = Parameter(torch.ones(3))

PARAMS = {
    "empty": (lambda: [], ValueError, "no parameters.*at least one"),
    "used generator": (consumed, ValueError, "no parameters.*generator.*afresh"),
    "empty group": (lambda: [{"params": []}], ValueError, "without parameters.*at least one"),
    "used generators in groups": (
        lambda: [{"params": consumed()}, {"params": consumed(), "lr": 1.0}],
        ValueError,
        "without parameters",
    ),
    "twice": (lambda: [ONE, ONE], ValueError, r"Parameter 1, of shape \(2,\), is given twice"),
    "twice by name": (lambda: [("a", ONE), ("b", ONE)], ValueError, "given twice"),
    "twice in two groups": (
        lambda: [{"params": [ONE]}, {"params": [OTHER, ONE]}],
        ValueError,
        "given twice.*one group",
    ),
    "number": (lambda: [ONE, 3.0], TypeError, "Parameter 1 is a float.*tensors"),
    "none": (lambda: None, TypeError, "NoneType.*iterable"),
    "single tensor": (lambda: ONE, TypeError, r"single tensor of shape \(2,\).*\[tensor\]"),
    "dict": (lambda: {"params": [ONE]}, TypeError, "params is a dict"),
    "text": (lambda: "params", TypeError, "params is a str"),
    "a module": (lambda: Adam(), TypeError, r"adam\(\).*Pass Optimizer\(model, adam\(\), ...\)"),
    "a model without parameters": (lambda: torch.nn.ReLU(), ValueError, "no parameters"),
    "no key params": (lambda: [{"lr": 0.1}], ValueError, "'lr'.*no 'params'"),
    "not a leaf": (lambda: [ONE * 2], ValueError, "non-leaf"),
    "integers": (lambda: [torch.ones(2, dtype=torch.int64)], ValueError, "0 has dtype torch.int64"),
    "booleans": (lambda: [torch.ones(2, dtype=torch.bool)], ValueError, "torch.bool"),
    "a set in a group": (lambda: [{"params": {ONE, OTHER}}], TypeError, "order"),
    "a set": (lambda: {ONE, OTHER}, TypeError, "a set, whose order may change.*Pass a list"),
    "a frozen set": (lambda: frozenset([ONE, OTHER]), TypeError, "a frozenset, whose order"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_parameters(case: str) -> None:
    params, error, message = PARAMS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        Optimizer(params(), LR(0.1))


def test_groups_are_taken_as_torch_takes_them() -> None:
    """A group may hold one tensor that stands in no list, and one of several may be empty."""
    groups = [{"params": []}, {"params": ONE, "lr": 0.2}, {"params": iter([OTHER])}]
    taken = Optimizer(groups, VectorProjection([Adam()]), LR(0.1)).param_groups
    assert [len(group["params"]) for group in taken] == [0, 1, 1]
    assert taken[1]["params"][0] is ONE
    assert [group["lr"] for group in taken] == [0.1, 0.2, 0.1]
    assert "lr" not in groups[0]  # what was given is left as it was


MODULES = {
    "none given": ((), ValueError, "no modules.*Pass"),
    "class": ((LR,), TypeError, r"Did you mean LR\(\)"),
    "class in a list": (([Adam, LR(0.1)],), TypeError, r"Did you mean Adam\(\)"),
    "torch's optimizer": ((torch.optim.Adam,), TypeError, "TorchOptim"),
    "number": ((0.1,), TypeError, "0.1 was given as a module"),
    "None": ((None,), TypeError, "None was given as a module"),
    "tensor": ((ONE,), TypeError, "was given as a module"),
    "unknown name": (("adm()",), LookupError, "'adm'.*adam"),
    "empty list": (([],), ValueError, "no modules"),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules(case: str) -> None:
    modules, error, message = MODULES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        Optimizer([ONE], *modules)


SETTINGS: dict[str, tuple[Callable[..., Any], str, Any]] = {
    "negative lr": (LR, "lr", -1.0),
    "lr is NaN": (LR, "lr", math.nan),
    "lr tensor is NaN": (LR, "lr", torch.tensor(math.nan)),
    "betas too large": (Adam, "betas", (0.9, 1.0)),
    "betas negative": (Adam, "betas", (-0.1, 0.9)),
    "betas NaN": (Adam, "betas", (math.nan, 0.9)),
    "betas alone": (Adam, "betas", 0.9),
    "three betas": (Adam, "betas", (0.9, 0.9, 0.9)),
    "negative eps": (Adam, "eps", -1e-8),
    "eps NaN": (Adam, "eps", math.nan),
    "momentum too large": (HeavyBall, "momentum", 1.5),
    "momentum NaN": (HeavyBall, "momentum", math.nan),
    "negative norm": (ClipNorm, "max_norm", -1.0),
    "norm NaN": (ClipNorm, "max_norm", math.nan),
    "text": (LR, "lr", "0.1"),
    "None": (LR, "lr", None),
    "boolean": (LR, "lr", True),
    "vector": (LR, "lr", torch.ones(2)),
}


@pytest.mark.parametrize("value", [math.nan, torch.tensor(math.nan), None, True, "1", [1.0]])
def test_a_setting_without_bounds_is_still_a_number(value: Any) -> None:
    with pytest.raises(errors.ProjcoreError, match=r"Owner\(name="):
        require("Owner", "name", value)
    for number in (0, -1.5, math.inf, torch.tensor(2)):
        require("Owner", "name", number)


def blame(name: str) -> str:
    return rf"(?s){name}.*\. .*\."  # the value given; the values expected


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_in_the_constructor(case: str) -> None:
    cls, name, value = SETTINGS[case]
    with pytest.raises((ValueError, TypeError), match=blame(name)) as caught:
        cls(**{name: value})
    assert isinstance(caught.value, errors.ProjcoreError)
    assert cls.__name__ in str(caught.value)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("inside", [False, True])
def test_settings_in_a_group(case: str, inside: bool, snapshot: Any, same: Any) -> None:
    cls, name, value = SETTINGS[case]
    module = cls(0.5) if cls in (LR, HeavyBall, ClipNorm) else cls()
    chain = VectorProjection([module]) if inside else module
    with pytest.raises((ValueError, TypeError), match=blame(name)) as caught:
        Optimizer([{"params": [ONE], name: value}], chain)
    assert isinstance(caught.value, errors.ProjcoreError)
    optimizer = Optimizer([ONE], chain)
    before = snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match=blame(name)):
        optimizer.add_param_group({"params": [OTHER], name: value})
    assert same(before, snapshot(optimizer))


KEYS = {
    "misspelt": ({"lrr": 0.1}, "'lrr'.*Did you mean 'lr'"),
    "of no module": ({"momentum": 0.9}, "'momentum'.*no module.*betas"),
    "ambiguous": ({"max_norm": 0.1}, "several modules.*'0.max_norm', '1.modules.0.max_norm'"),
    "of another position": ({"1.lr": 0.1}, "'1.lr'.*no module.*, lr"),
}


@pytest.mark.parametrize("case", KEYS)
def test_group_keys(case: str, snapshot: Any, same: Any) -> None:
    chain = [ClipNorm(1.0), VectorProjection([ClipNorm(2.0), Adam()]), LR(0.1)]
    keys, message = KEYS[case]
    with pytest.raises(errors.ArgumentError, match=f"(?s){message}"):
        Optimizer([{"params": [ONE], **keys}], chain)
    optimizer = Optimizer([ONE], chain)
    before = snapshot(optimizer)
    with pytest.raises(errors.ArgumentError, match=f"(?s){message}"):
        optimizer.add_param_group({"params": [OTHER], **keys})
    assert same(before, snapshot(optimizer))


def test_qualified_keys_reach_their_own_module(make: Any) -> None:
    params = make((2,), (2,))
    groups = [{"params": params[:1]}, {"params": params[1:], "2.lr": 3.0}]
    optimizer = Optimizer(groups, LR(1.0), VectorProjection([HeavyBall(0.0)]), LR(1.0))
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(before[0] - params[0], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(before[1] - params[1], 3 * torch.ones(2, dtype=torch.float64))


GROUPS = {
    "twice": ({"params": [ONE]}, ValueError, "given twice"),
    "integers": ({"params": [torch.ones(2, dtype=torch.int32)]}, ValueError, "torch.int32"),
    "not a leaf": ({"params": [OTHER * 1]}, ValueError, "non-leaf"),
    "another dtype": (
        {"params": [Parameter(torch.ones(2, dtype=torch.float64))]},
        ValueError,
        "several dtypes: torch.float32, torch.float64.*To",
    ),
    "no dict": ([OTHER], TypeError, "dict"),
    "names beside no names": ({"params": [("other", OTHER)]}, ValueError, "name"),
    "a set": ({"params": {OTHER}}, TypeError, "order"),
}


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("elide", [False, True])
@pytest.mark.parametrize("case", GROUPS)
def test_late_groups(case: str, elide: bool, stepped: bool, snapshot: Any, same: Any) -> None:
    optimizer = Optimizer([ONE], VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1))
    optimizer._use_passes(PASSES if elide else frozenset())
    ONE.grad = torch.ones_like(ONE)
    if stepped:
        optimizer.step()
    before = snapshot(optimizer)
    group, error, message = GROUPS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        optimizer.add_param_group(group)
    assert same(before, snapshot(optimizer))
    optimizer.step()


def test_groups_that_disagree_where_a_module_needs_one_value(make: Any, feed: Any) -> None:
    params = make((2,), (3,))
    groups = [{"params": params[:1]}, {"params": params[1:], "max_norm": 2.0}]
    with pytest.raises(errors.ArgumentError, match=r"groups disagree: max_norm is 1.0 .* and 2.0"):
        Optimizer(groups, VectorProjection([ClipNorm(1.0)]))
    optimizer = Optimizer([*groups[:1], {"params": params[1:]}], VectorProjection([ClipNorm(1.0)]))
    optimizer.param_groups[1]["max_norm"] = 3.0
    feed(params, 0)
    with pytest.raises(errors.ArgumentError, match="Give all of them the same max_norm"):
        optimizer.step()


@pytest.mark.parametrize(
    ("needs", "flag"),
    [
        ({"params"}, "project_params=True"),
        ({"closure"}, "project_params=True"),
        ({"grads"}, "project_grad=True"),
        ({"params", "grads"}, "project_grad=True and project_params=True"),
    ],
)
def test_needs_that_a_projection_does_not_deliver(needs: set[str], flag: str) -> None:
    with pytest.raises(errors.NeedsError, match=re.escape(f"Pass {flag}.")) as caught:
        Half([LR(0.1), Reader(frozenset(needs))])
    assert isinstance(caught.value, ValueError)
    assert "Half(project_params=False, project_grad=False) was given" in str(caught.value)
    assert str(sorted(needs)) in str(caught.value)
    Half([LR(0.1), Reader(frozenset(needs))], project_params=True, project_grad=True)
    with pytest.raises(errors.NeedsError, match=flag):  # through a projection that delivers them
        Half([VectorProjection([Reader(frozenset(needs))])])


@pytest.mark.parametrize("need", ["closure", "loss"])
def test_a_step_without_the_closure_it_needs(
    need: Any, make: Any, snapshot: Any, same: Any
) -> None:
    params = make()
    optimizer = Optimizer(params, VectorProjection([Reader(frozenset({need}))]), LR(0.1))
    for param in params:
        param.grad = torch.ones_like(param)
    before = snapshot(optimizer)
    with pytest.raises(errors.StepError, match=rf"needs \['{need}'\].*optimizer.step\(closure\)"):
        optimizer.step()
    assert same(before, snapshot(optimizer))


def test_a_closure_that_returns_nothing(make: Any, snapshot: Any, same: Any) -> None:
    params = make()
    optimizer = Optimizer(params, Reader(frozenset({"loss"})), LR(0.1))
    for param in params:
        param.grad = torch.ones_like(param)
    before = snapshot(optimizer)
    with pytest.raises(errors.StepError, match=r"returned None.*return loss"):
        optimizer.step(lambda: None)
    assert same(before, snapshot(optimizer))


NO_LOSS = {
    "vector": torch.ones(2),
    "complex": torch.tensor(1 + 1j),
    "list": [1.0, 2.0],
    "text": "loss",
    "dict": {"loss": 1.0},
}


@pytest.mark.parametrize("case", NO_LOSS)
@pytest.mark.parametrize("first", [True, False])
def test_a_closure_that_returns_no_loss(
    case: str, first: bool, make: Any, snapshot: Any, same: Any
) -> None:
    """At this step's point, or only at another."""
    params = make((2,))
    optimizer = Optimizer(params, VectorProjection([Backtracking()]))
    params[0].grad = torch.ones_like(params[0])
    results = [NO_LOSS[case]] if first else [1.0, NO_LOSS[case]]
    before = snapshot(optimizer)
    with pytest.raises(errors.StepError, match=r"closure returned .*loss"):
        optimizer.step(lambda: results.pop(0))
    after = snapshot(optimizer)
    assert same(before["params"], after["params"])


def sparse(param: Parameter) -> None:
    param.grad = torch.sparse_coo_tensor(
        [[0]], [1.0], param.shape, dtype=param.dtype, check_invariants=True
    )


def other_dtype(param: Parameter) -> None:
    param.grad_dtype = None  # torch's own permission
    param.grad = torch.ones(param.shape, dtype=torch.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (sparse, "gradient of parameter 1 has layout torch.sparse_coo.*dense.*sparse=False"),
        (other_dtype, "of parameter 1 has dtype torch.float32, the parameter torch.float64"),
    ],
)
@pytest.mark.parametrize("with_closure", [False, True])
def test_gradients_that_cannot_be_used(
    spoil: Any, message: str, with_closure: bool, make: Any, run: Any, snapshot: Any, same: Any
) -> None:
    params = make((2,), (3,))
    optimizer = Optimizer(params, VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1))
    run(optimizer, range(2))

    def closure() -> float:
        spoil(params[1])
        return 0.0

    if not with_closure:
        closure()
    before = snapshot(optimizer)
    with pytest.raises(errors.StepError, match=f"(?s){message}"):
        optimizer.step(closure if with_closure else None)
    after = snapshot(optimizer)
    for key in before.keys() - {"grads"}:
        assert same(before[key], after[key])


def test_two_dtypes_in_one_vector() -> None:
    params = [Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    with pytest.raises(errors.ArgumentError, match=r"torch.float32, torch.float64.*To\("):
        Optimizer(params, VectorProjection([Adam()]), LR(0.1))


class Wrong(Transform):
    """Returns for its second tensor something that cannot be subtracted from it."""

    scope = "element"

    def __init__(self, how: str) -> None:
        self.how = how
        super().__init__()

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        if self.how == "complex":
            return [tensors[0], tensors[1] * 1j]
        if self.how == "device":
            return [tensors[0], tensors[1].to("meta")]
        if self.how == "shape":
            return [tensors[0], tensors[1].reshape(-1, 1)]
        if self.how == "number":
            return [tensors[0], 1.0]  # type: ignore[list-item]
        return tensors[:1]


@pytest.mark.parametrize("how", ["complex", "device", "shape", "number", "count"])
@pytest.mark.parametrize("nested", [False, True])
def test_modules_that_break_their_contract(
    how: str, nested: bool, make: Any, feed: Any, snapshot: Any, same: Any
) -> None:
    params = make((2,), (3,))
    module = Half([Wrong(how)]) if nested else Wrong(how)
    optimizer = Optimizer(params, module)
    feed(params, 0)
    before = snapshot(optimizer)
    with pytest.raises(errors.ContractError, match=r"Wrong|update of parameter 1"):
        optimizer.step()
    after = snapshot(optimizer)
    for key in before.keys() - {"state"}:
        assert same(before[key], after[key])
