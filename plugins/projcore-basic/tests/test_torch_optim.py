"""TorchOptim(X) is X, bare and inside projections."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import projcore
from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, ContractError
from projcore.modules import LR, ClipNorm, TorchOptim
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal

ELEMENTWISE: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"betas": (0.8, 0.9)},
    "NAdam": {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {},
    "Adamax": {"maximize": True, "lr": 1e-4},
    "ASGD": {"t0": 10.0},
    "Rprop": {"etas": (0.6, 1.1)},
}


REFUSED = {"LBFGS", "SparseAdam"}
TENSORWISE: dict[str, dict[str, Any]] = {
    "Adafactor": {"lr": 0.1, "weight_decay": 0.1},
    "Muon": {"lr": 0.01, "momentum": 0.9},
}


def test_all_of_torchs_are_covered() -> None:
    found = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert found - {"Optimizer"} == {*ELEMENTWISE, *TENSORWISE, *REFUSED}


def of(place: Any, name: Any, options: dict[str, Any]) -> Callable[[Any], Optimizer]:
    return lambda params: Optimizer(params, *place([TorchOptim(name, options)]))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_same_trajectory(name: str, place: Any, follow: Any, same: Any) -> None:
    options = ELEMENTWISE[name]
    reference = partial(getattr(torch.optim, name), **options)
    same(follow(of(place, name, options)), follow(reference))


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_complex_numbers(name: str, complex_place: Any, follow: Any, same: Any) -> None:
    options, how = ELEMENTWISE[name], {"dtype": torch.complex128, "steps": 30}
    reference = partial(getattr(torch.optim, name), **options)
    same(follow(of(complex_place, name, options), **how), follow(reference, **how))


@pytest.mark.parametrize("name", TENSORWISE)
@pytest.mark.parametrize("schedule", [False, True])
def test_by_tensor(name: str, schedule: bool) -> None:
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=random, dtype=torch.float64) for s in [(4, 3), (3, 5)]]
    options = TENSORWISE[name]
    wraps: list[Callable[[Any], torch.optim.Optimizer]] = [
        lambda groups: getattr(torch.optim, name)(groups, **options),
        lambda groups: Optimizer(groups, TorchOptim(name, options)),
        lambda groups: Optimizer(groups, To([TorchOptim(name, options)], "float64")),
    ]
    ends = []
    for wrap in wraps:
        params = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = wrap([{"params": [params[0]], "lr": 0.03}, {"params": [params[1]]}])
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.8 if schedule else 1.0)
        for _ in range(200):
            for param in params:
                param.grad = param.detach() - 1
            optimizer.step()
            scheduler.step()
        ends.append(params)
    torch.testing.assert_close(ends[1:], [ends[0]] * 2, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
def test_groups_and_schedules(place: Any, follow: Any, same: Any) -> None:
    how = {
        "groups": [{"lr": 0.03}, {"eps": 1e-2}],
        "steps": 60,
        "schedule": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[0.05, 0.1], total_steps=61
        ),
    }
    same(follow(of(place, "Adam", {}), **how), follow(torch.optim.Adam, **how))


def test_after_other_modules() -> None:
    ours, theirs = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = Optimizer([ours], VectorProjection([ClipNorm(0.1)]), TorchOptim("SGD", {"lr": 0.5}))
    reference = torch.optim.SGD([theirs], lr=0.5)
    for param in (ours, theirs):
        param.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    torch.nn.utils.clip_grad_norm_([theirs], 0.1)
    reference.step()
    torch.testing.assert_close(ours, theirs)


OPTIONS: dict[str, list[str]] = {
    "fused": ["SGD", "Adam", "AdamW", "Adagrad"],
    "foreach": [*ELEMENTWISE, *TENSORWISE],
    "maximize": [*ELEMENTWISE],
}


@pytest.mark.parametrize("where", ["bare", "cast", "merged"])
@pytest.mark.parametrize(
    ("option", "name"), [(option, name) for option, names in OPTIONS.items() for name in names]
)
def test_options_that_trainers_pass(option: str, name: str, where: str) -> None:
    if name == "Muon" and (where == "merged" or option == "foreach"):
        pytest.skip("it takes only matrices, and has no such option")
    wraps: dict[str, Callable[[Any], Any]] = {
        "bare": lambda module: module,
        "cast": lambda module: To([module], "float64"),
        "merged": lambda module: VectorProjection([module]),
    }
    if name == "Adafactor" and where == "merged":
        pytest.skip("another result for a vector")
    options = {**ELEMENTWISE, **TENSORWISE}[name] | {option: True}
    ours, theirs = (torch.linspace(-1, 1, 12).double().reshape(3, 4) for _ in range(2))
    optimizers = [
        (ours.requires_grad_(), Optimizer([ours], wraps[where](TorchOptim(name, options)))),
        (theirs.requires_grad_(), getattr(torch.optim, name)([theirs], **options)),
    ]
    for _ in range(4):
        for param, optimizer in optimizers:
            param.grad = param.detach().cos()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_options_that_cannot_be(option: str) -> None:
    with pytest.raises(ArgumentError, match=f"{option}=True, which is not supported"):
        TorchOptim("AdamW", {option: True})
    TorchOptim("AdamW", {option: False})


def test_fused_kernels_take_real_numbers() -> None:
    weight = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    module = TorchOptim("Adam", {"fused": True})
    with pytest.raises(ArgumentError, match="complex64"):
        Optimizer([weight], module)
    Optimizer([weight], ViewAsReal([module]))


@pytest.mark.parametrize("where", ["bare", "cast"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_global_hooks_are_called_once(name: str, where: str) -> None:
    weight = torch.zeros(3, requires_grad=True)
    module: Any = TorchOptim(name)
    optimizer = Optimizer([weight], module if where == "bare" else To([module], "float64"))
    reference = getattr(torch.optim, name)([torch.zeros(3, requires_grad=True)])
    called: list[tuple[str, object]] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *given: called.append(("before", given[0]))),
        register_optimizer_step_post_hook(lambda *given: called.append(("after", given[0]))),
    ]
    try:
        for stepping in (optimizer, optimizer, reference):
            weight.grad = torch.ones(3)
            called.clear()
            stepping.step()
            assert called == [("before", stepping), ("after", stepping)]
    finally:
        for handle in handles:
            handle.remove()


class Hooked(torch.optim.SGD):
    """Has a hook of its own."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.register_step_post_hook(lambda optimizer, *given: optimizer.double_it())

    @torch.no_grad()
    def double_it(self) -> None:
        for param in self.param_groups[0]["params"]:
            param.mul_(2)


def test_hooks_of_its_own_are_called() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = Optimizer([weight], TorchOptim(Hooked))
    weight.grad = torch.ones(1)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.8]))


def test_large_tensors() -> None:
    # Large enough to be run piece by piece.
    ours, theirs = (torch.linspace(-1, 1, 400 * 500).reshape(400, 500) for _ in range(2))
    pairs = [
        (ours.requires_grad_(), Optimizer([ours], TorchOptim("SGD", {"momentum": 0.9, "lr": 0.1}))),
        (theirs.requires_grad_(), torch.optim.SGD([theirs], momentum=0.9, lr=0.1)),
    ]
    for _ in range(3):
        for param, optimizer in pairs:
            param.grad = param.detach().cos()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("where", ["bare", "cast", "merged", "stacked"])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *TENSORWISE])
def test_resume_is_bitwise(name: str, where: str) -> None:
    wrap: dict[str, Callable[[Any], Any]] = {
        "bare": lambda module: module,
        "cast": lambda module: To([module], "float64"),
        # What is merged is so inside: only without the update the plan runs nothing outside.
        "merged": lambda module: VectorProjection([module], project_update=False),
        "stacked": lambda module: ScalarProjection([module], project_update=False),
    }
    if name == "Muon" and where in ("merged", "stacked"):
        pytest.skip("it takes only matrices")

    def make() -> tuple[torch.Tensor, Optimizer]:
        weight = torch.linspace(-1, 1, 12).reshape(3, 4).t().requires_grad_()
        options = {**ELEMENTWISE, **TENSORWISE}[name]
        return weight, Optimizer([weight], wrap[where](TorchOptim(name, options)))

    def steps(weight: torch.Tensor, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            weight.grad = weight.detach().cos()
            optimizer.step()

    straight, optimizer = make()
    steps(straight, optimizer, 6)
    weight, optimizer = make()
    steps(weight, optimizer, 3)
    file = io.BytesIO()
    torch.save((weight.detach(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    resumed, optimizer = make()
    with torch.no_grad():
        resumed.copy_(saved)
    optimizer.load_state_dict(state)
    steps(resumed, optimizer, 3)
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


def test_memory_is_there_without_a_gradient() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    params[0].grad = torch.ones(2)
    optimizer = Optimizer(params, TorchOptim("Adam"))
    optimizer.step()
    first, second = (optimizer.state[param] for param in params)
    assert list(first) == list(second)
    assert (first["0/steps_taken"], second["0/steps_taken"]) == (1, 0)
    # The first gradient that it gets is its first step.
    params[1].grad = torch.full((2,), 5.0)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), torch.full((2,), 1 - 1e-3))


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("where", ["bare", "cast", "merged", "stacked"])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *TENSORWISE])
def test_memory_is_estimated(name: str, where: str, dtype: torch.dtype) -> None:
    module = TorchOptim(name, {**ELEMENTWISE, **TENSORWISE}[name])
    wraps: dict[str, Callable[[], Any]] = {
        "bare": lambda: module,
        "cast": lambda: To([module], "float64"),
        "merged": lambda: VectorProjection([module], project_update=False),
        "stacked": lambda: ScalarProjection([module], project_update=False),
    }
    shapes = [(4, 3), (1, 5)] if name == "Muon" else [(4, 3), (5,), (), (2, 3, 4)]
    if name == "Muon" and where in ("merged", "stacked"):
        pytest.skip("it takes only matrices")
    shapeless = [
        torch.zeros(shape, dtype=dtype, device="meta", requires_grad=True) for shape in shapes
    ]
    params = [torch.ones(shape, dtype=dtype) for shape in shapes]
    optimizer = Optimizer([param.requires_grad_() for param in params], wraps[where]())
    estimated = optimizer.memory()
    assert estimated.rows == Optimizer(shapeless, wraps[where]()).memory().rows
    assert estimated.unknown == ()
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.memory().rows == estimated.rows
    assert (estimated.state > 0) == bool(optimizer.state)


def test_memory_that_depends_on_values_is_not_estimated() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    optimizer = Optimizer([weight], TorchOptim(Reading, {"lr": 0.1}), LR(1.0))
    (module,) = optimizer.memory().unknown
    assert module.startswith("torch_optim(")
    assert module.endswith("at 0")
    assert f"The state of {module} is known only after" in optimizer.memory().notes[0]
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert optimizer.memory().unknown == ()
    assert optimizer.memory().state == 6 * 4


def test_nothing_else_changes() -> None:
    weight = torch.ones(2, 3).t().requires_grad_()
    weight.grad = torch.full((3, 2), 2.0)
    address, random = weight.data_ptr(), torch.get_rng_state()
    options = {"momentum": 0.9, "nesterov": True, "foreach": True}  # it writes into gradients
    optimizer = Optimizer([weight], TorchOptim("SGD", options))
    optimizer.step()
    torch.testing.assert_close(weight.grad, torch.full((3, 2), 2.0), rtol=0, atol=0)
    assert weight.data_ptr() == address
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(
        value.requires_grad
        for value in optimizer.state[weight].values()
        if isinstance(value, torch.Tensor)
    )


class Counting(torch.optim.Optimizer):
    """Keeps a number in its groups, as some optimizers do, and random state in its memory."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for param in group["params"]:
                if param.grad is not None:
                    self.state[param].setdefault("noise", torch.rand(()))
                    param.sub_(param.grad * group["lr"] * group["k"])


class Reading(torch.optim.SGD):
    """Reads values of the gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in self.param_groups[0]["params"]:
            if param.grad is not None and float(param.grad.sum()) >= 0:
                self.state[param]["mean"] = param.grad.clone()


class Listing(torch.optim.SGD):
    """Keeps what cannot be saved."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for param in self.param_groups[0]["params"]:
            self.state[param]["seen"] = [1]


def test_numbers_in_groups_are_kept() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = Optimizer([weight], TorchOptim(Counting, {"lr": 1.0}))
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert float(weight.detach()) == -(1 + 2 + 3)
    other = torch.zeros(1, requires_grad=True)
    resumed = Optimizer([other], TorchOptim(Counting, {"lr": 1.0}))
    resumed.load_state_dict(optimizer.state_dict())
    other.grad = torch.ones(1)
    resumed.step()
    assert float(other.detach()) == -4


def test_making_memory_draws_no_random_numbers() -> None:
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    optimizer = Optimizer([weight], TorchOptim(Counting))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["0/noise"], expected, rtol=0, atol=0)


def test_memory_that_cannot_be_saved() -> None:
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(ContractError, match="'seen', a list"):
        Optimizer([weight], TorchOptim(Listing, {"lr": 0.1}))


def test_scopes() -> None:
    assert TorchOptim("Adam").scope == "element"
    assert TorchOptim(torch.optim.Muon).scope == "tensor"
    assert TorchOptim(Counting).scope == "all"


def test_spec() -> None:
    for given in ("SGD", torch.optim.SGD):
        module = TorchOptim(given, {"lr": 0.1})
        assert str(module) == "torch_optim('SGD', options={'lr': 0.1})"
        assert str(projcore.build(str(module))) == str(module)
    built = projcore.build({"torch_optim": {"optimizer": "Adam", "options": {"betas": [0.5, 0.6]}}})
    assert built.defaults["betas"] == (0.5, 0.6)
    assert "amsgrad" not in built.defaults


def test_copies() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = Optimizer([weight], TorchOptim("Adam"), LR(1.0))
    assert str(copy.deepcopy(optimizer)) == str(optimizer)
    assert str(pickle.loads(pickle.dumps(optimizer))) == str(optimizer)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("Adm",), ArgumentError, "Did you mean 'Adam'"),
        (("Optimizer",), ArgumentError, "is not an optimizer"),
        (("LBFGS",), ArgumentError, "needs a closure"),
        ((torch.optim.SparseAdam,), ArgumentError, "sparse"),
        ((torch.nn.Linear,), ArgumentTypeError, "derived from torch.optim.Optimizer"),
        ((torch.optim.Optimizer,), ArgumentTypeError, "derived from"),
        ((3,), ArgumentTypeError, "was given 3"),
        ((Optimizer,), ArgumentTypeError, "derived from"),
        (("SGD", {"lr": -1.0}), ArgumentError, "Invalid learning rate"),
        (("SGD", {"lr": math.nan}), ArgumentError, "not NaN"),
        (("Adam", {"betas": (0.9, math.nan)}), ArgumentError, "betas"),
        (("SGD", {"rate": 1.0}), ArgumentError, "rate"),
        (("Adam", {"fused": True, "foreach": True}), ArgumentError, "fused"),
        (("Adam", 0.01), ArgumentTypeError, r"Pass TorchOptim\('Adam', lr=0.01\)"),
        (("Adam", [0.01]), ArgumentTypeError, "a list as options"),
        (("Adam", {"lr": 0.1}, 0.1), ArgumentError, "lr twice"),
        ((torch.optim.Adam([torch.zeros(1)]),), ArgumentTypeError, "an optimizer of class Adam"),
    ],
)
def test_what_is_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TorchOptim(*arguments)


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *TENSORWISE, "Counting"])
def test_what_an_error_advises_works(name: str, made: bool) -> None:
    """Where an optimizer of torch, or its class, was given as a module."""
    weight = torch.ones(2, 2, requires_grad=True)
    value = getattr(torch.optim, name, Counting)
    if made:
        value = value([weight], lr=0.25)
    for given in (value, [value]):
        with pytest.raises(ArgumentTypeError, match="as a module") as caught:
            Optimizer([weight], given)
        found = re.search(r"TorchOptim\(.*?\)", str(caught.value))
        assert found is not None
        module = eval(found[0], {"TorchOptim": TorchOptim, "Counting": Counting})
        optimizer = Optimizer([weight], module)
        assert optimizer.param_groups[0].get("lr", module.defaults["lr"]) > 0
        assert not made or module.defaults["lr"] == 0.25
        weight.grad = torch.ones(2, 2)
        optimizer.step()


def test_an_optimizer_of_ours_is_no_module() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = Optimizer([weight], "lr(0.1)")
    with pytest.raises(ArgumentTypeError, match="Pass the module of that optimizer") as caught:
        Optimizer([weight], optimizer)
    assert str(caught.value).endswith("optimizer.module.")
    assert str(Optimizer([weight], optimizer.module)) == str(optimizer)


def test_rate_by_its_name() -> None:
    module = TorchOptim(torch.optim.Adam, lr=0.25)
    assert module.defaults["lr"] == 0.25
    assert str(module) == "torch_optim('Adam', lr=0.25)"
    assert str(projcore.build(str(module))) == str(module)
    assert TorchOptim("Adam", {"eps": 0.5}, lr=0.25).defaults["eps"] == 0.5


def test_what_is_refused_when_the_optimizer_is_built() -> None:
    weight = torch.zeros(3, requires_grad=True)
    with pytest.raises(ArgumentError, match="Muon only supports 2D"):
        Optimizer([weight], TorchOptim("Muon"))
    with pytest.raises(ArgumentError, match="Invalid learning rate"):
        Optimizer([{"params": [weight], "lr": -1.0}], TorchOptim("SGD"))
