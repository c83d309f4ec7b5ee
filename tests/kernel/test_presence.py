"""Parameters that take no part (frozen, lazy), that join later, and that change under way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer, errors
from projcore.modules import LR, Adam, AdamMini, ClipNorm, HeavyBall, Route
from projcore.projections import LowRank, VectorProjection

CHAINS = {
    "adam": lambda: [Adam(), LR(0.1)],
    "vector": lambda: [VectorProjection([ClipNorm(1.0), Adam(), LR(0.1)])],
    "merged memory": lambda: [VectorProjection([AdamMini()]), LR(0.1)],
    "low_rank": lambda: [LowRank([Adam()], rank=1), LR(0.1)],
}


def network(frozen: tuple[int, ...] = ()) -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    for i in frozen:
        model[i].requires_grad_(False)
    return model


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("chain", CHAINS)
def test_a_frozen_first_layer_costs_nothing_and_resumes(chain: str) -> None:
    model = network(frozen=(0,))
    optimizer = Optimizer(model.parameters(), CHAINS[chain]())
    expected = optimizer.memory()
    train(model, optimizer, range(2))
    assert all(not optimizer.state.get(p) for p in model[0].parameters())
    assert optimizer.memory().state == expected.state
    assert "no, frozen" in optimizer.describe()
    other_model = copy.deepcopy(model)
    other = Optimizer(other_model.parameters(), CHAINS[chain]())
    other.load_state_dict(optimizer.state_dict())
    pickled_model, pickled = copy.deepcopy((model, optimizer))
    for each, its in ((model, optimizer), (other_model, other), (pickled_model, pickled)):
        train(each, its, range(2, 4))
    for p, q, r in zip(
        model.parameters(), other_model.parameters(), pickled_model.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("late", [0, 2])
def test_unfreezing_joins_and_a_checkpoint_from_before_loads(chain: str, late: int) -> None:
    """Also into an optimizer whose parameters are no longer frozen, or are frozen by now."""
    model = network(frozen=(late,))
    optimizer = Optimizer(model.parameters(), CHAINS[chain]())
    train(model, optimizer, range(2))
    other_model = copy.deepcopy(model).requires_grad_(True)
    other = Optimizer(other_model.parameters(), CHAINS[chain]())
    other.load_state_dict(optimizer.state_dict())
    model.requires_grad_(True)
    before = [p.detach().clone() for p in model[late].parameters()]
    for each, its in ((model, optimizer), (other_model, other)):
        train(each, its, range(2, 4))
    assert not any(map(torch.equal, before, model[late].parameters()))
    whole = Optimizer(model.parameters(), CHAINS[chain]())
    assert optimizer.memory().state == whole.memory().state  # nothing is left in another place
    assert all(map(torch.equal, model.parameters(), other_model.parameters()))
    again_model = copy.deepcopy(model)
    again_model[1].requires_grad_(False)
    again = Optimizer(again_model.parameters(), CHAINS[chain]())
    again.load_state_dict(optimizer.state_dict())
    model[1].requires_grad_(False)
    for each, its in ((model, optimizer), (again_model, again)):
        train(each, its, range(4, 6))
    assert all(map(torch.equal, model.parameters(), again_model.parameters()))


def test_memory_of_what_was_frozen_later_is_kept_and_not_touched() -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), Adam(), LR(0.1))
    train(model, optimizer, range(2))
    model[0].requires_grad_(False)
    kept = copy.deepcopy(optimizer.state[model[0].weight])
    weight = model[0].weight.clone()
    train(model, optimizer, range(2, 4))
    for key, value in kept.items():
        assert torch.equal(optimizer.state[model[0].weight][key], value)
    assert torch.equal(model[0].weight, weight)
    model[0].requires_grad_(True)
    train(model, optimizer, range(4, 5))
    assert optimizer.state[model[0].weight]["0/step"] == 3


def test_a_quantized_base_is_accepted_and_integers_alone_are_not() -> None:
    base = Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)
    adapter = Parameter(torch.ones(2))
    optimizer = Optimizer([base, adapter], Adam(), LR(0.1))
    adapter.grad = torch.ones(2)
    optimizer.step()
    assert not optimizer.state.get(base)
    with pytest.raises(errors.ArgumentError, match="dtype"):
        Optimizer([torch.ones(2, dtype=torch.uint8)], Adam(), LR(0.1))


def test_rules_for_what_is_frozen_are_no_mistake_and_others_are() -> None:
    model = network(frozen=(0,))
    rules: dict[Any, Any] = {"0.*": [Adam()], "1.*": [HeavyBall()], "*": []}
    rules["*"] = [LR(0.1)]
    optimizer = Optimizer(model.named_parameters(), Route(rules), LR(0.1))
    train(model, optimizer, range(2))
    model[1].requires_grad_(False)
    train(model, optimizer, range(2, 4))
    with pytest.raises(errors.ArgumentError, match=r"'7\.\*' of Route matches none"):
        Optimizer(model.named_parameters(), Route({"7.*": [Adam()], **rules}), LR(0.1))


@pytest.mark.parametrize("chain", ["adam", "vector", "merged memory"])
def test_lazy_layers_join_when_their_shape_is_known(chain: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 3))
    optimizer = Optimizer(model.parameters(), CHAINS[chain]())
    assert "lazy" in optimizer.describe()
    assert any("lazy parameter 0" in note for note in optimizer.memory().notes)
    train(model, optimizer, range(2))
    twin_model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    twin = Optimizer(twin_model.parameters(), CHAINS[chain]())
    twin_model.load_state_dict(model.state_dict())
    twin.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(2, 4))
    train(twin_model, twin, range(2, 4))
    assert all(map(torch.equal, model.parameters(), twin_model.parameters()))


CHANGES = {
    "shape": (lambda p: torch.zeros(4, 3), r"float32 of shape \(4, 3\) on cpu"),
    "dtype": (lambda p: p.double(), r"float64 of shape \(3, 3\) on cpu"),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("chain", "change"),
    [(chain, "shape") for chain in CHAINS] + [("adam", "dtype"), ("low_rank", "dtype")],
)
def test_a_parameter_that_changed_is_named(chain: str, change: str, named: bool) -> None:
    model = network()
    params = model.named_parameters() if named else model.parameters()
    optimizer = Optimizer(params, CHAINS[chain]())
    train(model, optimizer, range(2))
    changed, text = CHANGES[change]
    weight = model[1].weight
    weight.grad = None
    torch.utils.swap_tensors(weight, Parameter(changed(weight.detach().clone())))
    weight.grad = torch.ones_like(weight)
    before = [p.detach().clone() for p in model.parameters()]
    which = "'1.weight'" if named else "2"
    with pytest.raises(errors.StepError, match=rf"(?s)Parameter {which} was float32.*{text}"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.state.clear()
    optimizer.step()
    assert not torch.equal(before[2], weight)


def test_before_the_first_step_parameters_may_change() -> None:
    """As by ``model.to(...)`` behind the optimizer's construction."""
    model = network()
    optimizer = Optimizer(model.parameters(), LowRank([Adam()], rank=1), LR(0.1))
    model.double()
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["0/modules/0/exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("chain", CHAINS)
def test_parameters_that_tools_take_out_or_put_in(chain: str) -> None:
    """By changing the groups' lists themselves, as torch lets them."""
    model = network()
    groups = [{"params": list(model[i].parameters())} for i in range(2)]
    optimizer = Optimizer(groups, CHAINS[chain]())
    train(model, optimizer, range(2))
    taken = optimizer.param_groups.pop(0)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, range(2, 4))
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True, False, False]
    optimizer.param_groups.append(taken)
    train(model, optimizer, range(4, 6))
    assert not torch.equal(before[0], model[0].weight)


def test_no_name_is_better_than_that_of_another_parameter() -> None:
    """Where a tool takes out a parameter, but not its name and its note."""
    from projcore.recipes import galore_adamw

    model = network()
    optimizer = galore_adamw(model, rank=1)
    train(model, optimizer, range(2))
    first, *_ = optimizer.param_groups[1]["params"]
    group = optimizer.param_groups[1]
    group["params"] = [p for p in group["params"] if p is not first]
    train(model, optimizer, range(2, 4))
    table = optimizer.describe().partition("\n\n")[0]
    assert "2.weight" in table
    assert "bias" not in table
    given = {"params": list(model.parameters()), "param_names": group["param_names"]}
    assert galore_adamw([given], rank=1)
    model[2].bias.grad = torch.full((3,), torch.nan)
    optimizer.nonfinite = "raise"
    with pytest.raises(errors.NonFiniteError, match="The gradient of parameter 4, "):
        optimizer.step()


def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was() -> None:
    from projcore.recipes import galore_adamw

    model = network()
    optimizer = galore_adamw(model, rank=1)
    train(model, optimizer, range(2))
    late = [Parameter(torch.ones(3, 3)), Parameter(torch.ones(3))]
    with pytest.raises(errors.ProjcoreError):
        optimizer.add_param_group({"params": late, "rank": -1})
    count = len(optimizer.param_groups)
    train(model, optimizer, range(2, 3))
    assert len(optimizer.param_groups) == count


@pytest.mark.parametrize("named", [False, True])
def test_a_bad_gradient_is_named_by_its_place_among_all(named: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Embedding(4, 2, sparse=True))
    model[0].requires_grad_(False)
    params = model.named_parameters() if named else model.parameters()
    optimizer = Optimizer(params, Adam(), LR(0.1))
    model[1](torch.tensor([1])).sum().backward()
    which = "'1.weight'" if named else "2"
    with pytest.raises(errors.StepError, match=f"gradient of parameter {which} has layout"):
        optimizer.step()


@pytest.mark.parametrize("later", ["frozen", "lazy"])
def test_a_projection_for_what_takes_part_later_is_no_mistake(later: str) -> None:
    first = torch.nn.LazyLinear(3) if later == "lazy" else torch.nn.Linear(3, 3)
    if later == "frozen":
        first.requires_grad_(False)
    model = torch.nn.Sequential(first, torch.nn.LayerNorm(3))
    optimizer = Optimizer(model.parameters(), CHAINS["low_rank"]())
    train(model, optimizer, range(2))
    model.requires_grad_(True)
    train(model, optimizer, range(2, 4))
    assert "3 x 1" in optimizer.describe()
    with pytest.raises(errors.ArgumentError, match="applies to none of its 2 tensors"):
        Optimizer(model[1].parameters(), CHAINS["low_rank"]())
