"""Which parameters recipes project: by roles, of frozen ones, of stacks, and of later groups."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from projcore import Optimizer, registry
from projcore.errors import ArgumentError, ArgumentTypeError, ProjcoreError

NAMES = [each.name for each in registry.components("recipe") if each.plugin == "lowrank"]
PROJECTING = [name for name in NAMES if name != "intrinsic_dimension"]
SOAPS = ("soap", "kl_soap")  # which rotate embeddings, too
LEAVING = [name for name in PROJECTING if name not in SOAPS]
STACKS = {"experts.up", "experts.down"}


def build(name: str, params: Any, **options: Any) -> Optimizer:
    """Makes an optimizer with a rank, a dimension and a period that suit a small model."""
    recipe = registry.load("recipe", name)
    small = {"rank": 2, "dimension": 40, "period": 8 if name == "flora" else 4}
    accepted = inspect.signature(recipe).parameters
    small = {key: value for key, value in small.items() if key in accepted}
    made: Optimizer = recipe(params, **{**small, **options})
    return made


class Experts(nn.Module):
    """Three experts, whose matrices are stacked, as two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Parameter(torch.randn(3, 8, 6) / 3)
        self.down = Parameter(torch.randn(3, 6, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(
            "ebj,eij->bi", torch.einsum("bj,eij->ebi", x, self.up).tanh(), self.down
        )


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(9, 6)
        self.attn = nn.Linear(6, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.experts = Experts()
        self.lm_head = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.tok(x)) + self.conv(self.tok(x).mT[None])[0].mT
        made: Tensor = self.lm_head(self.experts(x))
        return made


def mixture() -> Mixture:
    torch.manual_seed(0)
    return Mixture().double()


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    tokens = torch.arange(9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), (2 * tokens + 1) % 9).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def notes(optimizer: Optimizer) -> dict[str, str]:
    return {
        name: note
        for group in optimizer.param_groups
        for name, note in zip(group["param_names"], group["param_notes"], strict=True)
    }


# Roles.


@pytest.mark.parametrize("name", LEAVING)
def test_notes_say_why_a_parameter_is_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "projcore"):
        optimizer = build(name, mixture())
    expected = {
        "attn.weight": "",
        "conv.weight": "",
        "experts.up": "3 matrices",
        "experts.down": "3 matrices",
        "tok.weight": "embedding",
        "lm_head.weight": "output layer",
        **dict.fromkeys(("attn.bias", "conv.bias", "lm_head.bias"), "no matrix"),
    }
    assert notes(optimizer) == expected
    lines = optimizer.describe().partition("\n\n")[0].splitlines()
    for each, note in expected.items():
        (line,) = [line for line in lines if line.startswith(f"{each} ")]
        assert line.endswith(note)
    (record,) = caplog.records  # once
    assert f"{name} projects 4 of 9 parameters" in record.getMessage()
    assert "embedding: tok.weight; " in record.getMessage()


def test_a_warning_says_that_nothing_that_trains_is_projected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(2, 6))
    model[0].requires_grad_(False)
    galore = build("galore_adamw", model)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "galore_adamw projects 1 of 6 parameters, all of them frozen. " in record.getMessage()
    model[0].requires_grad_(True)
    model(torch.ones(1, 6)).sum().backward()
    galore.step()  # they may join later
    build("galore_adamw", model)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", PROJECTING)
def test_complex_matrices_use_adam_or_are_taken(name: str) -> None:
    """Adafactor is for real numbers, also where nothing is projected, as in torch."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 7, dtype=torch.complex64), nn.Linear(6, 6))
    if name in ("flora", "galore_adafactor"):
        with pytest.raises(ArgumentError, match=r"adafactor.* was given a complex tensor"):
            build(name, model)
        return
    optimizer = build(name, model)
    real = name in ("muon_adamw", "sumo")
    assert notes(optimizer)["1.weight"] == ("complex numbers" if real else "")
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert not any(torch.equal(before[key], p) for key, p in model.named_parameters())


def test_only_hidden_layers_are_orthogonalized() -> None:
    """The last linear layer of a model that names no output layer."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    for name in PROJECTING:
        left = "last linear layer" if name in ("muon_adamw", "sumo") else ""
        assert notes(build(name, model))["2.weight"] == left
    assert notes(build("muon_adamw", model, project="ndim==2"))["2.weight"] == ""
    assert notes(build("soap", model, project=None))["2.weight"] == ""
    build("muon_adamw", nn.Linear(6, 6))


def test_notes_name_rules_and_ranks() -> None:
    model = mixture()
    optimizer = build("galore_adamw", model, rank=5, project={"attn*": {}, "conv*": {"rank": 7}})
    found = notes(optimizer)
    assert found["attn.weight"] == ""
    assert found["conv.weight"] == "a side within rank 7"
    assert found["experts.up"] == found["tok.weight"] == "left out by project"
    rules = {"attn*": {"rank": None}, "ndim>=2": {}}
    assert notes(build("galore_adamw", model, project=rules))["attn.weight"] == "rank=None"


def test_a_rule_may_ask_for_roles() -> None:
    optimizer = build("galore_adamw", mixture(), project="role==stack")
    assert {name for name, note in notes(optimizer).items() if "matrices" in note} == STACKS
    named = build("galore_adamw", mixture().named_parameters(), project="role==stack")
    assert {name for name, note in notes(named).items() if "matrices" in note} == STACKS


# Frozen parameters.


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_change_nothing_until_they_are_trained(name: str) -> None:
    model, twin = mixture(), mixture()
    model.base = Parameter(torch.zeros(40, 40, dtype=torch.uint8), requires_grad=False)
    for each in (model, twin):
        each.tok.requires_grad_(False)
    optimizer = build(name, model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p.is_floating_point() for p in held)  # integers are never trained
    train(model, optimizer, 3)
    assert not optimizer.state.get(model.tok.weight)
    trained = [(each, p) for each, p in twin.named_parameters() if p.requires_grad]
    train(twin, build(name, trained), 3)
    for each, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(each), rtol=0, atol=0)
    before = model.tok.weight.detach().clone()
    model.tok.requires_grad_(True)
    train(model, optimizer, 2)
    assert not torch.equal(model.tok.weight, before)


@pytest.mark.parametrize("name", ["muon_adamw", "sumo"])
def test_layers_may_be_unfrozen_from_the_last_one_on(name: str) -> None:
    """At first nothing is trained that the recipe projects; what is unfrozen later, it projects."""
    model = mixture()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    optimizer = build(name, model)
    train(model, optimizer, 2)
    model.requires_grad_(True)
    train(model, optimizer, 2)
    whole = build(name, mixture())
    assert optimizer.memory().rows == whole.memory().rows


@pytest.mark.parametrize("name", NAMES)
def test_all_frozen_is_an_error(name: str) -> None:
    message = rf"{name} was given 9 parameters, all of them frozen .* Call requires_grad_\(\)"
    with pytest.raises(ArgumentError, match=message):
        build(name, mixture().requires_grad_(False))


@pytest.mark.parametrize("name", PROJECTING)
def test_lazy_layers_are_an_error(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{name} was given 0.weight, whose .* Run the model"):
        build(name, nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 6)))


def test_a_tensor_with_a_gradient_is_not_frozen() -> None:
    weight = torch.ones(6, 6)
    weight.grad = torch.ones(6, 6)
    assert build("galore_adamw", [weight]).param_groups[0]["params"][0] is weight


# Stacks of matrices.


@pytest.mark.parametrize("name", ["galore_adamw", "fira", "ldadam", "sumo", "muon_adamw"])
def test_each_matrix_of_a_stack_is_by_itself(name: str) -> None:
    """The same as with a parameter for each: these recipes treat each matrix alone."""
    model, apart = mixture(), nn.Module()
    apart.experts = nn.ModuleList()
    for i in range(3):
        one = nn.Module()
        one.up, one.down = (Parameter(p[i].detach().clone()) for p in model.experts.parameters())
        apart.experts.append(one)
    slices = [
        (f"{i}.{side}", getattr(apart.experts[i], side))
        for side in ("up", "down")
        for i in range(3)
    ]
    stacks = build(name, model, project="experts.*", lr=0.05)
    others = build(name, slices, project="*", lr=0.05)
    for step in range(9):
        generator = torch.Generator().manual_seed(step)
        for p in model.experts.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for i in range(3):
            for side in ("up", "down"):
                getattr(apart.experts[i], side).grad = getattr(model.experts, side).grad[i].clone()
        stacks.step()
        others.step()
    for side in ("up", "down"):
        stacked = torch.stack([getattr(each, side) for each in apart.experts])
        # Newton-Schulz is in bfloat16, whose last bit depends on how products are batched.
        tolerance = 2e-3 if name == "muon_adamw" else 1e-9
        torch.testing.assert_close(
            getattr(model.experts, side), stacked, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", PROJECTING)
def test_stacks_resume_bitwise_and_their_memory_is_estimated(name: str) -> None:
    model = mixture()
    optimizer = build(name, model, project="role==stack")
    folded = [group["folding"] for group in optimizer.param_groups]
    assert folded[0] == "last2"
    assert set(folded[1:]) <= {"fold", "sides"}
    expected = optimizer.memory().state
    train(model, optimizer, 5)
    assert optimizer.memory().state == expected
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    resumed = build(name, other, project="role==stack")
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, 5)
    train(other, resumed, 5)
    for one, two in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("name", PROJECTING)
def test_a_file_that_knows_less_settings_leaves_the_others(name: str) -> None:
    """As files of earlier versions do: settings that are newer stay as the recipe made them."""
    model = mixture()
    optimizer = build(name, model)
    train(model, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("folding", "route", "param_notes"):
            group.pop(key, None)
    other = copy.deepcopy(model)
    resumed = build(name, other)
    resumed.load_state_dict(saved)
    assert notes(resumed) == notes(optimizer)
    train(model, optimizer, 5)
    train(other, resumed, 5)
    for one, two in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_folding_may_be_said() -> None:
    model = mixture()
    optimizer = build("galore_adamw", model, project={"role==stack": {"folding": "fold"}})
    assert optimizer.param_groups[0]["folding"] == "fold"
    assert notes(optimizer)["experts.up"] == ""
    with pytest.raises(ArgumentError, match=r"folding='rows'\) is not known"):
        build("galore_adamw", model, project={"role==stack": {"folding": "rows"}})


# Groups that are added later.


def late(name: str) -> tuple[Mixture, Optimizer]:
    model = mixture()
    later = {part: getattr(model, part) for part in ("tok", "conv", "experts", "lm_head")}
    for part in later:
        delattr(model, part)
    optimizer = build(name, model)
    for part, module in later.items():
        setattr(model, part, module)
    return model, optimizer


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("named", [True, False])
def test_rules_hold_for_groups_added_later(name: str, named: bool) -> None:
    """The same groups, and the same steps, as if the recipe had been given all at once."""
    model, optimizer = late(name)
    modules = [model.tok, model.conv, model.experts, model.lm_head]
    held = {p for module in modules for p in module.parameters()}
    pairs = [pair for pair in model.named_parameters() if pair[1] in held]
    optimizer.add_param_group({"params": pairs if named else [p for _, p in pairs], "lr": 0.02})
    whole = mixture()
    at_once = build(name, whole)
    assert notes(optimizer) == notes(at_once)

    def kept(each: Optimizer, of: Mixture) -> dict[str, list[str]]:
        train(of, each, 1)
        found = {}
        for parameter_name, parameter in of.named_parameters():
            state = each.state[parameter]
            found[parameter_name] = sorted(
                f"{key.rpartition('/')[2]} {getattr(value, 'shape', '')}"
                for key, value in state.items()
            )
        return found

    assert kept(optimizer, model) == kept(at_once, whole)
    rates = {group["lr"] for group in optimizer.param_groups[2:]}
    assert rates == {0.02}


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_other_parameters_needs_no_names(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = build(name, model[1])
    if name == "intrinsic_dimension":
        return
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(7, 6))})
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert "0" not in optimizer.param_groups[0]["param_names"]
    assert optimizer.param_groups[-1]["param_names"] == [None]
    again = build(name, model[1])
    again.add_param_group({"params": list(model[0].parameters())})
    again.add_param_group({"params": nn.Parameter(torch.ones(7, 6))})
    again.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", ["muon_adamw", "sumo"])
def test_what_was_pickled_goes_by_shape(name: str) -> None:
    _, optimizer = late(name)
    again = pickle.loads(pickle.dumps(optimizer))
    weight, bias = Parameter(torch.ones(7, 6)), Parameter(torch.ones(7))
    names = ["weight", "bias"]
    again.add_param_group({"params": list(zip(names, (weight, bias), strict=True))})
    weight.grad, bias.grad = torch.ones(7, 6), torch.ones(7)
    again.step()
    assert not any("exp_avg" in key for key in again.state[weight])
    assert any("exp_avg" in key for key in again.state[bias])


def test_a_later_group_is_added_whole_or_not_at_all() -> None:
    model, optimizer = late("muon_adamw")
    pairs = [*model.conv.named_parameters(), ("count", torch.ones(3, dtype=torch.int64))]
    before = len(optimizer.param_groups)
    with pytest.raises(ProjcoreError, match="int64"):
        optimizer.add_param_group({"params": pairs})
    assert len(optimizer.param_groups) == before
    train(model, optimizer, 1)
    for wrong in (3, [model.conv.weight]):
        with pytest.raises(ArgumentTypeError, match=r"to add. A group holds parameters"):
            optimizer.add_param_group(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"the keys \['lr'\], but no 'params'"):
        optimizer.add_param_group({"lr": 0.1})


def test_what_has_no_module_to_go_to_is_an_error() -> None:
    optimizer = build("muon_adamw", [Parameter(torch.ones(6, 6))])
    optimizer.add_param_group({"params": [Parameter(torch.ones(7, 6))]})
    with pytest.raises(ArgumentError, match=r"shape \(7,\) to add, which it does not project"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(7))]})


@pytest.mark.parametrize("name", ["apollo", "fira"])
def test_what_two_modules_share_is_one_for_later_groups(name: str) -> None:
    _, optimizer = late(name)
    weight = Parameter(torch.ones(7, 6))
    with pytest.raises(ArgumentError, match=r"It is one for all parameters"):
        optimizer.add_param_group({"params": [weight], "betas": (0.5, 0.6)})


# Order.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_refused(name: str, kind: Any) -> None:
    parameters = kind(mixture().parameters())
    for wrong in (parameters, [{"params": parameters}]):
        with pytest.raises(
            ArgumentTypeError, match=rf"a {kind.__name__}.*changes\s+from run to run"
        ):
            build(name, wrong)
    _, optimizer = late(name)
    with pytest.raises(ArgumentTypeError, match=rf"a {kind.__name__}.*changes\s+from run to run"):
        optimizer.add_param_group({"params": kind([Parameter(torch.ones(7, 6))])})


@pytest.mark.parametrize("name", LEAVING)
def test_groups_of_an_optimizer_make_another(name: str) -> None:
    """Names and notes of a group are of its parameters, wherever these go."""
    model = mixture()
    first = build(name, model)
    again = build(name, first.param_groups, project="attn.weight")
    assert {each: note == "" for each, note in notes(again).items() if "weight" in each} == {
        "attn.weight": True,
        "conv.weight": False,
        "tok.weight": False,
        "lm_head.weight": False,
    }
    owners = {
        p: name
        for group in again.param_groups
        for p, name in zip(group["params"], group["param_names"], strict=True)
    }
    assert all(owners[p] == each for each, p in model.named_parameters())
