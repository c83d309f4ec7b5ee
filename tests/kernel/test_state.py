"""The form of saved memory, and loading it: all or nothing, dtypes as saved."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, Transform, errors
from projcore.modules import LBFGS, LR, Adam, Backtracking, ClipNorm, HeavyBall
from projcore.projections import ScalarProjection, To, VectorProjection, ViewAsReal


class Norms(Transform):
    """Keeps memory as large as its tensor though it works on each tensor as a whole."""

    scope = "tensor"
    kinds = {"sum": "first"}

    def init(self, tensor: Tensor, settings: Any) -> dict[str, Any]:
        return {"sum": torch.zeros_like(tensor), "count": 0}

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        result = []
        for state, tensor in zip(facts[3], tensors, strict=True):
            state["sum"].add_(tensor)
            state["count"] += 1
            result.append(state["sum"] / (1 + state["sum"].norm()) / state["count"])
        return result


class Past(Transform):
    """Keeps a history that grows."""

    scope = "all"
    kinds = {"past": "history"}

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        for state, tensor in zip(facts[3], tensors, strict=True):
            state["past"] = torch.cat([state.get("past", tensor[None]), tensor[None]])
        return [state["past"].mean(0) for state in facts[3]]


CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam": lambda: [Adam(), LR(0.1)],
    "vector": lambda: [VectorProjection([ClipNorm(1.0), Adam(), LR(0.1)])],
    "merged memory": lambda: [VectorProjection([Norms(), HeavyBall(0.9)]), LR(0.1)],
    "nested": lambda: [VectorProjection([To([ScalarProjection([Adam()])], "float32"), LR(0.1)])],
    "history": lambda: [VectorProjection([Past()]), LR(0.1)],
}


def save(optimizer: Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("chain", CHAINS)
def test_form(chain: str, make: Any, run: Any) -> None:
    params = make()
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = Optimizer(groups, *CHAINS[chain]())
    assert optimizer.state_dict()["state"] == {}
    run(optimizer, range(2))
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert saved["state"].keys() == {0, 1, 2, 3}
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    for index, entries in saved["state"].items():
        assert entries.keys() == optimizer.state[params[index]].keys()
        for key, value in entries.items():
            assert "." not in key
            assert not isinstance(value, bool)
            assert isinstance(value, (Tensor, int, float))
            assert not isinstance(value, Tensor) or not value.requires_grad
            assert type(value) is not Parameter
    for group in saved["param_groups"]:
        assert group["lr"] == 0.1
        for value in group.values():
            assert isinstance(value, (int, float, str, tuple, list, type(None)))


def test_memory_of_elementwise_modules_is_kept_per_parameter(make: Any, run: Any) -> None:
    params = make()
    optimizer = Optimizer(params, VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1))
    run(optimizer, range(1))
    for param in params:
        entries = optimizer.state[param]
        assert entries.keys() == {f"0/modules/1/{k}" for k in ("step", "exp_avg", "exp_avg_sq")}
        assert entries["0/modules/1/exp_avg"].shape == param.shape


@pytest.mark.parametrize("chain", CHAINS)
def test_loading_goes_on_as_if_never_stopped(
    chain: str, make: Any, run: Any, snapshot: Any, same: Any
) -> None:
    optimizer = Optimizer(make(), *CHAINS[chain]())
    run(optimizer, range(3))
    saved = save(optimizer)
    other = Optimizer(params := make(), *CHAINS[chain]())
    with torch.no_grad():
        for mine, theirs in zip(params, optimizer.param_groups[0]["params"], strict=True):
            mine.copy_(theirs)
    other.load_state_dict(saved)
    for one in (optimizer, other):
        run(one, range(3, 6))
    first, second = snapshot(optimizer), snapshot(other)
    for key in ("params", "state", "groups"):
        assert same(first[key], second[key])


@pytest.mark.parametrize("chain", CHAINS)
def test_loading_back_into_the_optimizer_that_went_on(chain: str, make: Any, run: Any) -> None:
    optimizer = Optimizer(params := make(), *CHAINS[chain]())
    run(optimizer, range(2))
    saved, values = save(optimizer), [p.detach().clone() for p in params]
    run(optimizer, range(2, 5))
    wanted = [p.detach().clone() for p in params]
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved)
    run(optimizer, range(2, 5))
    assert all(map(torch.equal, wanted, params))


@pytest.mark.parametrize("chain", CHAINS)
def test_loaded_memory_is_a_copy(chain: str, make: Any, run: Any, same: Any) -> None:
    optimizer = Optimizer(make(), *CHAINS[chain]())
    run(optimizer, range(2))
    saved = optimizer.state_dict()
    before = deepcopy(saved)
    other = Optimizer(make(), *CHAINS[chain]())
    other.load_state_dict(saved)
    run(other, range(2))
    other.param_groups[0]["lr"] = 7.0
    assert same(before["state"], saved["state"])
    assert same(before["param_groups"], saved["param_groups"])


def test_loaded_settings_are_copies(make: Any, run: Any) -> None:
    rate = torch.tensor(0.1)
    optimizer = Optimizer(make(), Adam(), LR(rate))
    run(optimizer, range(1))
    saved = optimizer.state_dict()
    other = Optimizer(make(), Adam(), LR(torch.tensor(0.5)))
    other.load_state_dict(saved)
    other.param_groups[0]["lr"].fill_(7.0)
    assert rate == saved["param_groups"][0]["lr"] == torch.tensor(0.1)


def test_saved_settings_win(make: Any, run: Any) -> None:
    optimizer = Optimizer([{"params": make(), "lr": 0.3}], Adam(), LR(0.1))
    run(optimizer, range(1))
    other = Optimizer(make(), Adam((0.5, 0.5)), LR(0.2))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.3
    assert other.param_groups[0]["betas"] == (0.9, 0.999)


def test_before_the_first_step(make: Any, run: Any) -> None:
    fresh = Optimizer(make(), Adam(), LR(0.1)).state_dict()
    optimizer = Optimizer(params := make(), Adam(), LR(0.1))
    run(optimizer, range(2))
    optimizer.load_state_dict(fresh)
    assert not optimizer.state
    optimizer.step()
    assert optimizer.state[params[0]]["0/step"] == 1


@pytest.mark.parametrize(
    ("dtype", "chain", "key", "kept"),
    [
        ("bfloat16", lambda: [To([Adam()], "float32")], "0/modules/0/exp_avg", torch.float32),
        ("bfloat16", lambda: [To([Adam()], "float64")], "0/modules/0/exp_avg", torch.float64),
        ("float64", lambda: [To([Adam()], "float16")], "0/modules/0/exp_avg", torch.float16),
        ("complex128", lambda: [HeavyBall(0.9)], "0/momentum_buffer", torch.complex128),
        ("complex64", lambda: [ViewAsReal([Adam()])], "0/modules/0/exp_avg", torch.float32),
        ("float32", lambda: [To([HeavyBall(0.9)], "complex64")], None, torch.complex64),
    ],
)
def test_dtypes_stay_as_saved(
    dtype: str, chain: Any, key: str | None, kept: torch.dtype, make: Any, run: Any, same: Any
) -> None:
    optimizer = Optimizer(params := make(dtype=getattr(torch, dtype)), *chain(), LR(0.1))
    run(optimizer, range(2))
    key = key or next(k for k, v in optimizer.state[params[0]].items() if v.ndim)
    assert optimizer.state[params[0]][key].dtype == kept
    other = Optimizer(make(dtype=getattr(torch, dtype)), *chain(), LR(0.1))
    other.load_state_dict(save(optimizer))
    assert same(save(optimizer), save(other))


def refused(
    make: Any, run: Any, snapshot: Any, same: Any, saved: Any, message: str, chain: str = "adam"
) -> None:
    optimizer = Optimizer(make(), *CHAINS[chain]())
    run(optimizer, range(2))
    before = snapshot(optimizer)
    with pytest.raises(errors.CheckpointError, match=f"(?s){message}"):
        optimizer.load_state_dict(saved)
    assert same(before, snapshot(optimizer))
    run(optimizer, range(2, 3))


OTHERS: dict[str, tuple[Callable[[Any], Optimizer], str]] = {
    "another module": (
        lambda make: Optimizer(make(), HeavyBall(0.9), LR(0.1)),
        "other modules: it has module 0=HeavyBall where this optimizer has 0=Adam.*were saved",
    ),
    "one more module": (
        lambda make: Optimizer(make(), Adam(), LR(0.1), ClipNorm(1.0)),
        "other modules: it has module 2=ClipNorm where this optimizer has nothing",
    ),
    "one less": (
        lambda make: Optimizer(make(), Adam()),
        "it has module nothing where this optimizer has 1=LR",
    ),
    "inside": (
        lambda make: Optimizer(make(), VectorProjection([Adam(), LR(0.1)])),
        "it has module 0=VectorProjection where this optimizer has 0=Adam",
    ),
    "other shapes": (
        lambda make: Optimizer(make((2, 3), (4,), (), (2, 1, 3)), Adam(), LR(0.1)),
        r"'0/exp_avg' of parameter 0 has shape \(2, 3\) in the state dict, and \(3, 2\) in this",
    ),
    "other shapes at the end": (
        lambda make: Optimizer(make((3, 2), (4,), (), (2, 3, 1)), Adam(), LR(0.1)),
        r"parameter 3 has shape \(2, 3, 1\) in the state dict, and \(2, 1, 3\) in this",
    ),
    "more parameters": (
        lambda make: Optimizer(make((3, 2), (4,), (), (2, 1, 3), (2,)), Adam(), LR(0.1)),
        "Group 0 has 5 parameters in the state dict, and 4 in this optimizer",
    ),
    "other groups": (
        lambda make: Optimizer([{"params": [p]} for p in make()], Adam(), LR(0.1)),
        "4 parameter groups, this optimizer has 1",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_checkpoints_of_others(case: str, make: Any, run: Any, snapshot: Any, same: Any) -> None:
    build, message = OTHERS[case]
    optimizer = build(make)
    run(optimizer, range(2))
    refused(make, run, snapshot, same, save(optimizer), message)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.SGD])
def test_checkpoints_of_torch(cls: Any, make: Any, run: Any, snapshot: Any, same: Any) -> None:
    optimizer = cls(make(), lr=0.1)
    run(optimizer, range(2))
    message = "not saved by a projcore optimizer.*'projcore'"
    refused(make, run, snapshot, same, optimizer.state_dict(), message)


def entry(saved: Any, value: Any, key: str = "0/exp_avg", index: int = 2) -> None:
    saved["state"][index][key] = value


DAMAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no state": (lambda saved: saved.pop("state"), "'state' is missing"),
    "no groups": (lambda saved: saved.pop("param_groups"), "'param_groups' is missing"),
    "no params in a group": (lambda saved: saved["param_groups"][0].pop("params"), "params"),
    "a group is a list": (lambda saved: saved["param_groups"].__setitem__(0, []), "roup 0"),
    "groups are a number": (lambda saved: saved.update(param_groups=3), "param_groups"),
    "state is a list": (lambda saved: saved.update(state=[]), "state"),
    "entries are missing": (lambda saved: saved["state"].__setitem__(1, None), "parameter 1"),
    "entries of nobody": (
        lambda saved: saved["state"].update({9: saved["state"][0]}),
        "parameter 9.*in none of its groups",
    ),
    "an entry is missing": (lambda saved: saved["state"][2].pop("0/exp_avg"), "'0/exp_avg'"),
    "an entry is None": (lambda saved: entry(saved, None), "'0/exp_avg' of parameter 2"),
    "an entry is a number": (lambda saved: entry(saved, 3.0), "'0/exp_avg' of parameter 2.* 3.0 "),
    "an entry is a list": (lambda saved: entry(saved, [1.0]), "'0/exp_avg' of parameter 2"),
    "an entry of nobody": (
        lambda saved: entry(saved, torch.ones(2), "7/exp_avg"),
        "'7/exp_avg' for parameter 2, but there is no module at '7'",
    ),
    "an entry of another shape": (
        lambda saved: entry(saved, torch.ones(2)),
        r"has shape \(2,\) in the state dict, and \(\) in this optimizer",
    ),
    "a bad setting": (lambda saved: saved["param_groups"][0].update(lr=-1.0), r"Group 0.*lr=-1"),
    "another format": (
        lambda saved: saved["param_groups"][0].update(
            projcore=saved["param_groups"][0]["projcore"].replace("1", "99", 1)
        ),
        "format",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_checkpoints(case: str, make: Any, run: Any, snapshot: Any, same: Any) -> None:
    damage, message = DAMAGES[case]
    optimizer = Optimizer(make(), *CHAINS["adam"]())
    run(optimizer, range(2))
    saved = save(optimizer)
    damage(saved)
    refused(make, run, snapshot, same, saved, message)


@pytest.mark.parametrize("value", [None, 3, [], "state"])
def test_no_state_dict_at_all(value: Any, make: Any) -> None:
    with pytest.raises(errors.CheckpointError, match="state"):
        Optimizer(make(), LR(0.1)).load_state_dict(value)


def test_merged_memory_of_other_shapes(make: Any, run: Any, snapshot: Any, same: Any) -> None:
    optimizer = Optimizer(make((3, 2), (5,), (), (2, 1, 3)), *CHAINS["merged memory"]())
    run(optimizer, range(2))
    message = r"'0/modules/0/sum' of parameter 0 has shape \(18,\) in the state dict, and \(17,\)"
    refused(make, run, snapshot, same, save(optimizer), message, "merged memory")


def test_the_memory_of_a_merged_space_is_not_lost_with_its_anchor(
    make: Any, run: Any, snapshot: Any, same: Any
) -> None:
    """As when torch's distributed checkpointing leaves out a frozen first parameter."""
    optimizer = Optimizer(params := make(), *CHAINS["merged memory"]())
    run(optimizer, range(2))
    saved = save(optimizer)
    del saved["state"][0]
    params[0].requires_grad_(False)
    before = snapshot(optimizer)
    with pytest.raises(errors.CheckpointError, match=r"at '0/modules/0', .*parameter 0.*frozen"):
        optimizer.load_state_dict(saved)
    assert same(before, snapshot(optimizer))


def test_closure_modules_resume(make: Any, snapshot: Any, same: Any) -> None:
    def closure_of(params: list[Parameter]) -> Any:
        def closure(backward: bool = True) -> Tensor:
            loss = sum((p - i).pow(4).sum() for i, p in enumerate(params))
            assert isinstance(loss, Tensor)
            if backward:
                for p in params:
                    p.grad = None
                loss.backward()
            return loss

        return closure

    def build(params: list[Parameter]) -> Optimizer:
        return Optimizer(params, VectorProjection([LBFGS(), Backtracking()]))

    optimizer = build(params := make())
    for _ in range(3):
        optimizer.step(closure_of(params))
    other = build(copies := make())
    with torch.no_grad():
        for mine, theirs in zip(copies, params, strict=True):
            mine.copy_(theirs)
    other.load_state_dict(save(optimizer))
    for _ in range(3):
        optimizer.step(closure_of(params))
        other.step(closure_of(copies))
    assert same(snapshot(optimizer)["params"], snapshot(other)["params"])
    assert same(snapshot(optimizer)["state"], snapshot(other)["state"])
