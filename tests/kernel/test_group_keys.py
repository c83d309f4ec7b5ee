"""Keys of parameter groups: settings, misspelt ones, those of others; and values set later."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.errors import (
    ArgumentError,
    ProjcoreError,
    ProjcoreWarning,
    within_one_typo,
)
from projcore.modules import LR, Adam, AdamW, ClipNorm, HeavyBall
from projcore.projections import LDAdamSubspace, LowRank, VectorProjection

KEPT = {"name": "head", "layer_decay": 0.5, "wd_mult": (1.0, 2), "lr_scale": 0.1}


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("lrr", "lr", True),
        ("l", "lr", False),
        ("rl", "lr", True),
        ("Weight-Decay", "weight_decay", True),
        ("weight_decy", "weight_decay", True),
        ("wieght_decay", "weight_decay", True),
        ("weightt_decay", "weight_decay", True),
        ("wieght_decy", "weight_decay", False),
        ("beta", "betas", True),
        ("name", "rank", False),
        ("id", "d", False),
        ("e", "d", False),
        ("abcd", "badc", False),
    ],
)
def test_one_typo(one: str, other: str, near: bool) -> None:
    assert within_one_typo(one, other) is near
    assert within_one_typo(other, one) is near


REFUSED = {
    "a letter too few": ("beta", r"Did you mean 'betas'\? Settings: betas, eps, lr"),
    "written otherwise": ("Betas", "Did you mean 'betas'"),
    "of a module that is not here": (
        "weight_decay",
        r"(?s)setting of adafactor, adamw.*weight_decay\(...\)",
    ),
    "of a projection that is not here": ("rank", r"coordinate_subspace.*low_rank"),
    "nearly of one that is not here": ("rang", "'rank' is a setting of coordinate_subspace"),
    "at no such position": ("7.modules.0.lr", "at that position"),
    "of another, at a position": ("0.weight_decay", "adamw"),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_are_meant_as_settings(case: str, late: bool, make: Any) -> None:
    key, message = REFUSED[case]
    optimizer = Optimizer(make(), Adam(), LR(0.1))
    group = {"params": make((2,)), key: 0.5}
    with pytest.raises(ArgumentError, match=message):
        optimizer.add_param_group(group) if late else Optimizer([group], Adam(), LR(0.1))
    assert len(optimizer.param_groups) == 1


def test_a_shared_name_is_refused_though_the_key_is_there(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Use one of '0\.lr', '1\.lr'"):
        Optimizer([{"params": make(), "lr": 0.5}], LR(0.1), LR(0.2))


def foreign(make: Any) -> Optimizer:
    groups = [{"params": [p], **KEPT} for p in make()]
    with pytest.warns(ProjcoreWarning) as caught:
        optimizer = Optimizer(groups, Adam(), LR(0.1))
    assert [next(key for key in KEPT if repr(key) in str(w.message)) for w in caught] == list(KEPT)
    return optimizer


def test_keys_of_others_are_kept_with_one_warning_each(make: Any, run: Any, same: Any) -> None:
    optimizer, bare = foreign(make), Optimizer(make(), Adam(), LR(0.1))
    for each in (optimizer, bare):
        run(each, range(3))
    params = [[p for g in each.param_groups for p in g["params"]] for each in (optimizer, bare)]
    assert same(*params)
    assert all({k: group[k] for k in KEPT} == KEPT for group in optimizer.param_groups)
    again = foreign(make)
    again.load_state_dict(optimizer.state_dict())
    assert all({k: group[k] for k in KEPT} == KEPT for group in again.param_groups)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        run(copied, range(1))


def test_a_key_set_later_loads(make: Any, run: Any) -> None:
    """Whatever it is: the run that saved it must not be lost."""
    optimizer = Optimizer(make(), Adam(), LR(0.1))
    run(optimizer, range(1))
    keys = {"name": "head", "lrr": 0.5, "weight_decay": 0.1, "0.eps": 3}
    optimizer.param_groups[0].update(keys)
    with pytest.warns(ProjcoreWarning) as caught:
        run(optimizer, range(1, 3))
    assert len(caught) == len(keys)
    again = Optimizer(make(), Adam(), LR(0.1))
    with pytest.warns(ProjcoreWarning) as caught:
        again.load_state_dict(optimizer.state_dict())
    assert keys.items() <= again.param_groups[0].items()
    run(again, range(1))


def test_what_is_here_stays_where_nothing_was_saved(make: Any) -> None:
    optimizer = foreign(make)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["name"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["name"] == "head"


def test_keys_of_schedulers_need_no_warning(make: Any, run: Any) -> None:
    optimizer = Optimizer(make(), HeavyBall(0.9), LR(0.1))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    run(optimizer, range(2))
    Optimizer(make(), HeavyBall(0.9), LR(0.1)).load_state_dict(optimizer.state_dict())


LATER: dict[str, tuple[Callable[[], list[Any]], str, list[Any], str]] = {
    "rank": (lambda: [LowRank([Adam()], rank=2), LR(0.1)], "rank", [0, -3, 2.5, "2"], "LowRank"),
    "period": (lambda: [LowRank([Adam()]), LR(0.1)], "period", [0, -1, None], "LowRank"),
    "period of LDAdam": (
        lambda: [LDAdamSubspace([Adam()], rank=2), LR(0.1)],
        "period",
        [2, 0],
        "LDAdamSubspace",
    ),
    "lr": (lambda: [Adam(), LR(0.1)], "lr", [-1.0, math.nan, "0.1"], "LR"),
    "lr inside": (lambda: [VectorProjection([Adam(), LR(0.1)])], "lr", [-1.0], "LR"),
    "the factor": (lambda: [Adam()], "lr", [-1.0, None], "Optimizer"),
    "betas": (lambda: [AdamW(), LR(0.1)], "betas", [0.5, (0.5,), (0.5, 1.0)], "AdamW"),
    "max_norm": (lambda: [ClipNorm(1.0), LR(0.1)], "max_norm", [math.nan, ()], "ClipNorm"),
}


@pytest.mark.parametrize("case", LATER)
def test_a_bad_value_set_later(case: str, make: Any, run: Any, snapshot: Any, same: Any) -> None:
    chain, key, values, owner = LATER[case]
    optimizer = Optimizer(make((4, 3), (3,)), *chain())
    run(optimizer, range(1))
    good = optimizer.param_groups[0][key]
    calls = []
    for value in values:
        optimizer.param_groups[0][key] = value
        before = snapshot(optimizer)
        with pytest.raises(ProjcoreError, match=rf"{owner}\("):
            optimizer.step(lambda: calls.append(1))
        after = snapshot(optimizer)
        assert before.pop("groups")[0].keys() == after.pop("groups")[0].keys()
        assert same(after, before)
    assert not calls  # not even the closure
    optimizer.param_groups[0][key] = good
    run(optimizer, range(1, 2))


def test_a_lost_setting(make: Any, run: Any) -> None:
    optimizer = Optimizer(make(), Adam(), LR(0.1))
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ArgumentError, match="group 0 lacks 'lr'"):
        run(optimizer, range(1))


def test_what_has_not_changed_is_not_checked_again(make: Any, run: Any) -> None:
    class Checked(LR):
        count = 0

        def check(self, settings: Any) -> None:
            type(self).count += 1
            super().check(settings)

    optimizer = Optimizer(make(), Adam(), Checked(0.1))
    run(optimizer, range(1))
    before = Checked.count
    run(optimizer, range(1, 4))
    assert Checked.count == before
    optimizer.param_groups[0]["lr"] = 0.2
    run(optimizer, range(4, 6))
    assert Checked.count == before + 1


def test_warnings_that_are_errors_leave_all_as_it_was(
    make: Any, run: Any, snapshot: Any, same: Any
) -> None:
    optimizer, other = Optimizer(make(), Adam(), LR(0.1)), Optimizer(make(), Adam(), LR(0.2))
    run(optimizer, range(1))
    before = snapshot(optimizer)
    saved = other.state_dict()
    saved["param_groups"][0]["name"] = "head"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ProjcoreWarning):
            optimizer.load_state_dict(saved)
        assert same(snapshot(optimizer), before)
        with pytest.raises(ProjcoreWarning):
            optimizer.add_param_group({"params": make((2,)), "team": "head"})
    assert same(snapshot(optimizer), before)
