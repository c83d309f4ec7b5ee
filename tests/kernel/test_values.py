"""Numbers and lists of other libraries are taken, and become plain ones."""

from __future__ import annotations

import io
from collections import OrderedDict, UserList
from collections.abc import Sequence
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from projcore import Optimizer
from projcore.errors import ProjcoreError
from projcore.modules import LR, Adam, ClipNorm, GradientAccumulation
from projcore.projections import IntrinsicSubspace, LowRank, Reshape, VectorProjection
from projcore.values import plain


class Config(Sequence[Any]):
    """A list-like, as those of configuration libraries."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __getitem__(self, i: Any) -> Any:
        return self.items[i]

    def __len__(self) -> int:
        return len(self.items)


class Choice(IntEnum):
    ONE = 1


PLAIN: list[tuple[Any, Any]] = [
    (np.float64(0.5), 0.5),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.str_("name"), "name"),
    (np.array(0.5), 0.5),
    (np.array([0.5, 0.25]), (0.5, 0.25)),
    (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
    (Fraction(1, 2), 0.5),
    (Decimal("0.5"), 0.5),
    (torch.tensor(3), 3),
    (torch.tensor(True), True),
    ([0.5, np.int64(2)], (0.5, 2)),
    (UserList([0.5, None]), (0.5, None)),
    (Config(np.float32(0.5), Config(1)), (0.5, (1,))),
    (torch.Size((2, 3)), (2, 3)),
    (OrderedDict(a=np.int64(1)), {"a": 1}),
]


def same_types(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same_types, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("value", "expected"), PLAIN, ids=lambda value: repr(value)[:30])
def test_what_becomes_plain(value: Any, expected: Any) -> None:
    made = plain(value)
    if isinstance(expected, dict):
        assert made == expected
        assert type(made["a"]) is int
    else:
        assert same_types(made, expected), (made, expected)
    assert plain(made) is made


@pytest.mark.parametrize(
    "value",
    [1.0, 3, True, None, "text", (0.5, 0.25), torch.tensor(0.5), torch.ones(2), Choice.ONE, b"a"],
    ids=repr,
)
def test_what_stays(value: Any) -> None:
    assert plain(value) is value


def test_containers_of_pythons_own_stay_in_arguments() -> None:
    modules = [Adam()]
    assert plain(modules, keep=True) is modules
    assert plain([np.int64(1), modules], keep=True) == [1, modules]
    assert plain(size := torch.Size((2,)), keep=True) is size


BUILT = {
    "a number": (lambda v: [Adam(), LR(v(0.125))], "lr", 0.125),
    "a pair of numbers": (lambda v: [Adam(betas=(v(0.5), v(0.75))), LR(0.1)], "betas", (0.5, 0.75)),
    "a whole number": (
        lambda v: [GradientAccumulation([LR(0.1)], period=v(2))],
        "period",
        2,
    ),
    "a rank": (lambda v: [LowRank([Adam()], rank=v(2)), LR(0.1)], "rank", 2),
}


@pytest.mark.parametrize("case", BUILT)
def test_constructors(case: str, make: Any) -> None:
    chain, key, expected = BUILT[case]
    whole = isinstance(expected, int)
    for kind in (np.int64, torch.tensor) if whole else (np.float64, np.float32, Fraction, Decimal):
        optimizer = Optimizer(make((4, 3)), *chain(kind))
        assert same_types(optimizer.param_groups[0][key], expected)
        assert same_types(optimizer.defaults[key], expected)


def test_arguments_that_are_no_settings() -> None:
    seeded = IntrinsicSubspace([LR(0.1)], dimension=np.int64(2), seed=torch.tensor(3))
    assert str(seeded) == "intrinsic_subspace([lr(0.1)], 2, seed=3)"
    assert str(Reshape([LR(0.1)], UserList([np.int64(6), 1]))) == "reshape([lr(0.1)], (6, 1))"


def test_schedules_that_return_numpy_numbers(make: Any, run: Any) -> None:
    """Also after the last step: what was written is not read before it is saved."""
    optimizer = Optimizer(make(), Adam(), LR(0.1))
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: np.float64(0.5) ** step)
    run(optimizer, range(2))
    schedule.step()
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    saved = loads(optimizer)
    assert same_types(saved["param_groups"][0]["lr"], 0.05)
    run(optimizer, range(2, 3))
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_groups_and_keys_of_others_are_saved_plain(make: Any, run: Any) -> None:
    params = make()
    groups = [
        {"params": params[:2], "lr": np.float32(0.5), "betas": Config(0.5, np.float64(0.75))},
        {"params": params[2:], "betas": [0.5, 0.75]},
    ]
    optimizer = Optimizer(groups, Adam(), LR(0.1))
    lr_scheduler.OneCycleLR(optimizer, max_lr=np.float64(0.5), total_steps=9)
    run(optimizer, range(2))
    for group in loads(optimizer)["param_groups"]:
        assert all(type(value) in (str, int, float, list, tuple) for value in group.values())


@pytest.mark.parametrize("value", [np.complex128(1j), object(), {0.1}, torch.ones(2)])
def test_a_refusal_names_the_type(value: Any, make: Any) -> None:
    kind = "complex" if isinstance(value, np.complex128) else type(value).__name__
    for call in (
        lambda: LR(value),
        lambda: Optimizer([{"params": make(), "lr": value}], LR(0.1)),
        lambda: ClipNorm(value),
    ):
        with pytest.raises(ProjcoreError, match=f"was given a {kind}"):
            call()


def test_a_tensor_stays_live(make: Any, run: Any) -> None:
    rate = torch.tensor(0.5)
    optimizer = Optimizer(make(), VectorProjection([Adam()]), LR(rate))
    run(optimizer, range(1))
    assert optimizer.param_groups[0]["lr"] is rate
    loads(optimizer)


def loads(optimizer: Optimizer) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
