"""What all recipes promise: what they take, project, keep, and how they fail."""

from __future__ import annotations

import copy
import inspect
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, registry
from projcore.errors import ArgumentError, ArgumentTypeError

NAMES = [each.name for each in registry.components("recipe") if each.plugin == "lowrank"]
SMALL: dict[str, Any] = {"rank": 2, "dimension": 40, "period": 4, "leading": 1}
SOAPS = ("soap", "kl_soap")  # which rotate embeddings, too
RANKED = [name for name in NAMES if name not in (*SOAPS, "muon_adamw", "intrinsic_dimension")]
PROJECTING = [name for name in NAMES if name != "intrinsic_dimension"]
RANDOM = ["alice", "apollo", "frugal", "golore", "grassjump", "grasswalk", "intrinsic_dimension"]


def recipe(name: str) -> Callable[..., Optimizer]:
    made: Callable[..., Optimizer] = registry.load("recipe", name)
    return made


def build(name: str, params: Any, **options: Any) -> Optimizer:
    """Makes an optimizer with a rank, a dimension and a period that suit a small model."""
    accepted = inspect.signature(recipe(name)).parameters
    small = {key: value for key, value in SMALL.items() if key in accepted}
    if name == "flora":  # between refreshes momentum has to shrink by more than the root of 6 / 2
        small["period"] = 8
    return recipe(name)(params, **{**small, **options})


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Linear(6, 6)
        self.up = torch.nn.Linear(6, 12)
        self.down = torch.nn.Linear(12, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.attn(x))
        made: Tensor = self.norm(x + self.down(torch.relu(self.up(x))))
        return made


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(11, 6)
        self.blocks = torch.nn.ModuleList([Block()])
        self.lm_head = torch.nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.lm_head(self.blocks[0](self.wte(x)))
        return made


MATRICES = ["blocks.0.attn.weight", "blocks.0.up.weight", "blocks.0.down.weight"]
TOKENS = torch.randint(0, 11, (16, 8), generator=torch.Generator().manual_seed(0))


def model_of(dtype: torch.dtype = torch.float64) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().to(dtype)


def train(model: Model, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(TOKENS).flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, ((3 * TOKENS + 1) % 11).flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def split(optimizer: Optimizer) -> dict[str, int]:
    """Returns the number of the group of each parameter."""
    return {
        name: number
        for number, group in enumerate(optimizer.param_groups)
        for name in group["param_names"]
    }


def rows(text: str) -> dict[str, list[str]]:
    """Returns the cells of the first table of a description, by parameter."""
    lines = text.partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {each[0]: each[1:] for each in cells}


def test_all_that_are_registered_are_tested() -> None:
    assert {"galore_adamw", "apollo", "ldadam", "soap", "muon_adamw"} <= set(NAMES)


# What they take.


def forms(model: Model) -> Iterator[tuple[str, Any]]:
    named = list(model.named_parameters())
    yield "model", model
    yield "named", model.named_parameters()
    yield "unnamed", model.parameters()
    yield "groups", [{"params": named[:3], "lr": 0.02}, {"params": named[3:]}]
    yield "groups of unnamed", [{"params": [p]} for p in model.parameters()]


@pytest.mark.parametrize("form", ["model", "named", "unnamed", "groups", "groups of unnamed"])
@pytest.mark.parametrize("name", NAMES)
def test_training(name: str, form: str) -> None:
    model = model_of()
    losses = train(model, build(name, dict(forms(model))[form], lr=0.03), 40)
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_its_named_parameters(name: str) -> None:
    rule = {} if name == "intrinsic_dimension" else {"project": "ndim==2 blocks*"}
    ends = []
    for form in ("model", "named"):
        model = model_of()
        train(model, build(name, dict(forms(model))[form], **rule), 6)
        ends.append(weights(model))
    assert equal(*ends)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    model = model_of(torch.bfloat16)
    before = weights(model)
    optimizer = build(name, model, lr=0.02)
    losses = train(model, optimizer, 9)
    assert losses[-1] < losses[0]
    assert not equal(before, weights(model))
    assert all(torch.isfinite(p).all() and p.dtype == torch.bfloat16 for p in weights(model))


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bitwise(name: str) -> None:
    model = model_of()
    optimizer = build(name, model)
    train(model, optimizer, 6)  # between refreshes, but for those of every step
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    resumed = build(name, other)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, 6)
    train(other, resumed, 6)
    assert equal(weights(model), weights(other))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        kept, again = optimizer.state[one], resumed.state[two]
        assert kept.keys() == again.keys()
        for key, value in kept.items():
            torch.testing.assert_close(again[key], value, rtol=0, atol=0)


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_recipes import RANDOM, build, model_of, train, weights
made = {}
for name in RANDOM:
    model = model_of()
    train(model, build(name, model, seed=5), 9)
    made[name] = weights(model)
torch.save(made, sys.argv[2])
"""


def test_a_seed_gives_the_same_in_another_process(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    file = tmp_path / "weights.pt"
    subprocess.run([sys.executable, "-c", SCRIPT, here, str(file)], check=True)
    made = torch.load(file, weights_only=True)
    for name in RANDOM:
        ends = []
        for seed in (5, 6):
            torch.manual_seed(seed)  # the global generator plays no part
            model = model_of()
            train(model, build(name, model, seed=seed), 9)
            ends.append(weights(model))
        assert equal(made[name], ends[0])
        assert not equal(*ends)


# Schedulers.


@pytest.mark.parametrize("name", NAMES)
def test_one_cycle_begins_with_a_small_rate(name: str) -> None:
    moves = []
    for cycle in (False, True):
        model = model_of()
        before = weights(model)
        optimizer = build(name, model, lr=0.01)
        if cycle:
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.01, total_steps=10, div_factor=8, cycle_momentum=False
            )
        train(model, optimizer, 1)
        moves.append([a - b for a, b in zip(weights(model), before, strict=True)])
    for fast, slow in zip(*moves, strict=True):
        torch.testing.assert_close(slow, fast / 8, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_cosine_annealing_ends_with_no_rate(name: str) -> None:
    model = model_of()
    optimizer = build(name, model, lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        before = weights(model)
        train(model, optimizer, 1)
        scheduler.step()
    assert not equal(before, weights(model))
    before = weights(model)
    train(model, optimizer, 1)
    assert equal(before, weights(model))


# What is projected.


@pytest.mark.parametrize("name", [name for name in PROJECTING if name not in SOAPS])
def test_embeddings_and_heads_of_models_are_left_out(name: str) -> None:
    model = model_of()
    groups = split(build(name, model))
    assert len(set(groups.values())) == 2
    assert sorted(each for each, group in groups.items() if group == 0) == sorted(MATRICES)


@pytest.mark.parametrize("name", [name for name in PROJECTING if name not in SOAPS])
def test_embeddings_and_heads_are_left_out_by_name(name: str) -> None:
    names = {
        "model.embed_tokens.weight": False,
        "pos_embedding": False,
        "lm_head.weight": False,
        "head.weight": False,
        "heads.head.weight": False,  # of torchvision
        "heads.0.query.weight": True,  # heads of attention
        "layers.0.multihead_attn.in_proj_weight": True,  # of torch
        "layers.0.fc.weight": True,
        "layers.0.fc.bias": False,
    }
    pairs = [
        (each, Parameter(torch.ones(9) if "bias" in each else torch.ones(9, 7))) for each in names
    ]
    groups = split(build(name, pairs))
    assert {each: group == 0 for each, group in groups.items()} == names


def test_of_named_parameters_an_embedding_is_known_by_name_alone() -> None:
    model = model_of()
    assert split(build("galore_adamw", model.named_parameters()))["wte.weight"] == 1
    renamed = [(name.replace("wte", "words"), p) for name, p in model.named_parameters()]
    assert split(build("galore_adamw", renamed))["words.weight"] == 0


@pytest.mark.parametrize("name", RANKED)
def test_the_description_shows_the_split(name: str) -> None:
    described = rows(build(name, model_of()).describe())
    rank = "1" if name == "apollo_mini" else "2"
    columns = "6 x 2" if name == "frugal" else f"6 x {rank}"  # a quarter of 6 is rounded to 2
    assert columns in described["blocks.0.attn.weight"]
    for each in ("wte.weight", "lm_head.weight"):
        assert described[each][0] == "11 x 6"
        assert columns not in described[each]
        inside = "0: *" if name == "sumo" else "11 x 6"
        assert inside in described[each][1:]


SIDES = {"blocks.0.attn.weight": 2, "blocks.0.up.weight": 3, "blocks.0.down.weight": 3}


def inner_ranks(model: Model, optimizer: Optimizer) -> dict[str, set[int]]:
    """Returns, of each matrix, the shorter sides of all matrices in its memory."""
    found = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter].values()
        found[name] = {
            min(entry.shape) for entry in state if isinstance(entry, Tensor) and entry.ndim == 2
        }
    return found


@pytest.mark.parametrize("name", [name for name in RANKED if name != "galore_adafactor"])
def test_rules_have_settings_of_their_own(name: str) -> None:
    model = model_of()
    key = "density" if name == "frugal" else "rank"
    ranks: dict[str, Any] = {} if name == "apollo_mini" else {key: 3}
    rules = {"*.attn.* ndim==2": {"rank": 2}, "blocks.* ndim==2": {"rank": 3, "lr": 0.0}}
    optimizer = build(name, model, project=rules, **ranks)
    before = {each: parameter.detach().clone() for each, parameter in model.named_parameters()}
    train(model, optimizer, 2)
    found = inner_ranks(model, optimizer)
    for each, parameter in model.named_parameters():
        assert torch.equal(parameter, before[each]) is ("up.w" in each or "down.w" in each)
        if each in SIDES:
            assert SIDES[each] in found[each]
            assert 5 - SIDES[each] not in found[each]


def test_settings_of_a_rule_are_for_all_that_it_matches() -> None:
    model = model_of()
    rules = {
        "*.attn.*": {"lr": 0.0, "rank": 2},
        "*.up.weight": {"lr": 0.5, "rank": 6},
        "*.down.*": {},
    }
    optimizer = build("galore_adamw", model, lr=0.1, project=rules)
    found = {
        name: (optimizer.param_groups[group].get("lr"), optimizer.param_groups[group]["rank"])
        for name, group in split(optimizer).items()
    }
    assert found["blocks.0.attn.weight"] == (0.0, 2)
    assert found["blocks.0.attn.bias"] == (0.0, None)
    assert found["blocks.0.up.weight"] == (0.5, None)  # nothing would be saved
    assert found["blocks.0.down.weight"] == (0.1, 2)
    assert found["lm_head.weight"] == (0.1, None)
    assert len(optimizer.param_groups) == 5


@pytest.mark.parametrize("name", [name for name in RANKED if name != "galore_adafactor"])
def test_groups_override_the_rank_and_the_rate(name: str) -> None:
    model = model_of()
    named = list(model.named_parameters())
    groups = [
        {"params": [pair for pair in named if "blocks" in pair[0]], "rank": 3},
        {"params": [pair for pair in named if "blocks" not in pair[0]], "rank": 4, "lr": 0.0},
    ]
    optimizer = build(name, groups, project="ndim==2 !*wte* !*head*")
    before = {each: parameter.detach().clone() for each, parameter in named}
    train(model, optimizer, 2)
    found = inner_ranks(model, optimizer)
    for each, parameter in named:
        assert torch.equal(parameter, before[each]) is ("blocks" not in each)
        if each in MATRICES:
            assert 3 in found[each]
    # What a group holds and the rules leave out is not projected, whatever the rank of the group.
    assert 4 not in found["wte.weight"] | found["lm_head.weight"]
    assert 6 in found["wte.weight"]


def test_the_group_comes_before_the_rule() -> None:
    weight = Parameter(torch.ones(9, 7))
    groups = [{"params": weight, "rank": 3}]  # torch takes a tensor by itself, too
    optimizer = build("galore_adamw", groups, project={"ndim==2": {"rank": 5}})
    assert [group["rank"] for group in optimizer.param_groups] == [3]


@pytest.mark.parametrize("name", RANKED)
def test_no_rank_leaves_out(name: str) -> None:
    model = model_of()
    rules = {"*.attn.*": {"rank": None}, "blocks.* ndim==2": {}}
    groups = split(build(name, model, project=rules))
    assert sorted(each for each, group in groups.items() if group == 0) == sorted(MATRICES[1:])


@pytest.mark.parametrize("name", PROJECTING)
def test_rules_may_be_functions_or_several(name: str) -> None:
    def wide(_: str | None, tensor: Tensor) -> bool:
        return tensor.ndim == 2 and tensor.shape[1] == 12

    model = model_of()
    groups = split(build(name, model, project=["*.up.weight", wide]))
    projected = {each for each, group in groups.items() if group == 0}
    assert {"blocks.0.up.weight", "blocks.0.down.weight"} - projected <= {"blocks.0.down.weight"}
    again = split(build(name, model, project=wide))
    assert [each for each, group in again.items() if group == 0] == ["blocks.0.down.weight"]


@pytest.mark.parametrize("name", [*SOAPS, "muon_adamw", "sumo"])
def test_adam_has_what_is_left_out(name: str) -> None:
    model = model_of()
    optimizer = build(name, model, project="*.up.weight", lr=0.01, weight_decay=0.0)
    train(model, optimizer, 1)
    betas = {"muon_adamw": (0.9, 0.95), "sumo": (0.9, 0.999)}.get(name, (0.95, 0.95))
    other = model_of()
    left = [p for each, p in other.named_parameters() if each != "blocks.0.up.weight"]
    adam = torch.optim.Adam(left, lr=0.01, betas=betas)
    train(other, adam, 1)  # type: ignore[arg-type]
    for (each, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if each != "blocks.0.up.weight":
            # SOAP's eps stands beside the root of the moment before its correction.
            atol = 1e-4 if name in SOAPS else 0
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=atol)


def test_soap_leaves_out_what_it_is_told_to() -> None:
    model = model_of()
    optimizer = build("soap", model, project="blocks.* ndim==2")
    train(model, optimizer, 2)
    turned = {
        each
        for each, parameter in model.named_parameters()
        if any("basis" in key for key in optimizer.state[parameter])
    }
    assert turned == set(MATRICES)
    assert not any("route" in str(each) for each in build("soap", model).module.modules)


# Memory.


@pytest.mark.parametrize(
    ("name", "options", "elements", "counts"),
    [
        # The basis and two moments; a count.
        ("galore_adamw", {"rank": 4}, 30 * 4 + 2 * 50 * 4, 8),
        # Two moments; two counts, and a norm of 4 bytes.
        ("apollo", {"rank": 4}, 2 * 50 * 4, 2 * 8 + 4),
        ("apollo_mini", {}, 2 * 50, 2 * 8 + 4),
        # Two moments of a part of the columns; indices of these, and a count.
        ("frugal", {"density": 0.2}, 2 * 30 * 10, 8 * 10 + 8),
        ("dct_adamw", {"rank": 4}, 2 * 50 * 4, 8 * 4 + 8),
        ("dct_adamw", {"rank": 4, "error_feedback": True}, 2 * 50 * 4 + 30 * 50, 8 * 4 + 8),
        ("fira", {"rank": 4}, 30 * 4 + 2 * 50 * 4, 2 * 8 + 4),
        ("subtrack", {"rank": 4}, 30 * 4 + 2 * 50 * 4, 2 * 8 + 4),
        ("grasswalk", {"rank": 4}, 30 * 4 + 2 * 50 * 4, 2 * 8 + 4),
        ("grassjump", {"rank": 4}, 2 * 50 * 4, 2 * 8 + 4),
        # And the mean of products inside, and the sizes of residuals.
        ("alice", {"rank": 4}, 30 * 4 + 2 * 50 * 4 + 4 * 4 + 50, 8 + 4),
        ("golore", {"rank": 4}, 2 * 50 * 4, 8),
        ("flora", {"rank": 4}, 50 * 4 + 30 + 50, 8),
        ("sumo", {"rank": 4}, 30 * 4 + 50 * 4, 8 + 4),
        ("galore_adafactor", {"rank": 4}, 30 * 4 + 50 + 4, 8),
        ("ldadam", {"rank": 4}, 30 * 4 + 2 * 50 * 4 + 30 * 50, 8),
        ("soap", {}, 2 * 30 * 50 + 2 * 30 * 30 + 2 * 50 * 50, 8 * (30 + 50) + 8),
        ("kl_soap", {}, 2 * 30 * 50 + 2 * 30 * 30 + 2 * 50 * 50 + 30 + 50, 8),
        ("muon_adamw", {}, 30 * 50, 0),
        ("intrinsic_dimension", {"dimension": 40}, 2 * 40, 8),
    ],
    ids=str,
)
def test_memory_is_what_the_formula_says(
    name: str, options: dict[str, Any], elements: int, counts: int
) -> None:
    weight = Parameter(torch.randn(30, 50))
    optimizer = recipe(name)([weight], **options)
    estimated = optimizer.memory()
    for _ in range(2):
        weight.grad = torch.randn(30, 50)
        optimizer.step()
    counted = optimizer.memory()
    assert counted.state == estimated.state == 4 * elements + counts
    assert not counted.notes


# Errors: what was given, what was expected, what to do.


@pytest.mark.parametrize("name", PROJECTING)
def test_a_rule_that_matches_nothing_is_an_error(name: str) -> None:
    message = (
        rf"The rule '\*.mlp.\*' of {name} matches no parameter that rules before it leave. There "
        r"are wte.weight, blocks.0.attn.weight, .*, .... Correct or remove it."
    )
    for project in ("*.mlp.*", ["ndim==2", "*.mlp.*"], {"*.mlp.*": {}, "ndim==2": {}}):
        with pytest.raises(ArgumentError, match=message):
            build(name, model_of(), project=project)
    with pytest.raises(ArgumentError, match=r"The rule 'huge' of .* matches no parameter"):
        build(name, model_of(), project=huge)


def huge(_: str | None, tensor: Tensor) -> bool:
    return tensor.numel() > 1e9


@pytest.mark.parametrize("name", [name for name in RANKED if name not in ("frugal", "apollo_mini")])
def test_a_rank_that_saves_nothing_is_an_error(name: str) -> None:
    message = (
        rf"{name} would project none of its 11 parameters, of shapes \(11, 6\) "
        r"\(embedding\), \(6, 6\) \(a side within rank 6\), .*, .... It "
        r"projects those of the rules 'role!=vector role!=embedding .*'. Correct what the brackets "
        r"say, such as the rank, or pass other rules as project."
    )
    with pytest.raises(ArgumentError, match=message):
        build(name, model_of(), rank=6)


@pytest.mark.parametrize("name", PROJECTING)
def test_a_model_without_matrices_is_an_error(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.LayerNorm(4))
    with pytest.raises(ArgumentError, match=rf"{name}.*\. .*\. Correct .*\."):
        build(name, model)


@pytest.mark.parametrize("name", PROJECTING)
def test_what_is_no_parameter_is_an_error(name: str) -> None:
    weight = Parameter(torch.ones(9, 7))
    for wrong in (weight, "weight", {"params": [weight]}, 3):
        with pytest.raises(ArgumentTypeError, match=rf"{name} was given a \w+. It takes a model"):
            build(name, wrong)
    for wrong in ([weight, "bias"], [("weight", weight), ("bias", 3)]):
        with pytest.raises(ArgumentTypeError, match=r"was given a \w+ among its parameters"):
            build(name, wrong)
    for empty in ([], iter([]), [{"params": []}]):
        with pytest.raises(ArgumentError, match=rf"{name} was given no parameters"):
            build(name, empty)
    with pytest.raises(ArgumentError, match=r"the keys \['lr'\], but no 'params'"):
        build(name, [{"lr": 0.1}])


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("apollo", "betas", (0.5, 0.9)),
        ("apollo_mini", "betas", (0.5, 0.9)),
        ("fira", "betas", (0.5, 0.9)),
        ("subtrack", "betas", (0.5, 0.9)),
        ("flora", "beta", 0.5),
    ],
)
def test_what_two_modules_share_is_one_for_all(name: str, setting: str, value: Any) -> None:
    model = model_of()
    message = rf"{name}\({setting}=.* for a group or a rule. It is one .* Pass it to {name} itself."
    with pytest.raises(ArgumentError, match=message):
        build(name, model, project={"blocks.* ndim==2": {setting: value}})
    with pytest.raises(ArgumentError, match=message):
        build(name, [{"params": model.parameters(), setting: value}])
    build(name, [{"params": model.parameters(), setting: value}], **{setting: value})
    again = build(name, build(name, model, **{setting: value}).param_groups, **{setting: value})
    for group in again.param_groups:
        assert {group[key] for key in keys_of(again, setting)} == {value}


def keys_of(optimizer: Optimizer, setting: str) -> list[str]:
    """The keys of a setting in parameter groups, qualified by position or not."""
    return [key for key in optimizer.defaults if key.rpartition(".")[2] == setting]


@pytest.mark.parametrize("name", ["apollo", "apollo_mini", "fira", "grasswalk"])
def test_betas_of_two_modules_do_not_drift_apart(name: str) -> None:
    """What would change one of the two finds neither; each is named by position."""
    model = model_of()
    optimizer = build(name, model)
    assert keys_of(optimizer, "betas") == ["0.modules.0.betas", "1.betas"]
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10, cycle_momentum=False)
    given = {"1.betas": (0.5, 0.9)}
    with pytest.raises(ArgumentError, match=r"given 1.betas=\(0.5, 0.9\) for a group or a rule"):
        build(name, [{"params": model.parameters(), **given}])


@pytest.mark.parametrize("name", NAMES)
def test_bad_settings_are_errors(name: str) -> None:
    accepted = inspect.signature(recipe(name)).parameters
    for wrong in ({"lr": -1.0}, {"rank": 0}, {"period": 0}, {"scale": -1.0}, {"density": 0.0}):
        if wrong.keys() <= accepted.keys():
            with pytest.raises((ArgumentError, ValueError)):
                build(name, model_of(), **wrong)
    if name in PROJECTING:
        with pytest.raises(ArgumentError):
            build(name, model_of(), project={"blocks.* ndim==2": {"rang": 3}})
