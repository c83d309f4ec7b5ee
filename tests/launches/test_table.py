"""A step asks of a CUDA device what the table says: launches, syncs, copies, memory.

A number that grew is a step that got slower on a GPU, which no other test here would notice. A
number that shrank fails as well, so that the table stays true: ``table.py`` says how to write it.
"""

from __future__ import annotations

import pytest

from benchmarks.cases import CASES
from projcore import recipes
from tests.launches.fake_cuda import AVAILABLE
from tests.launches.table import Row, measure, places, row, table

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not AVAILABLE, reason="torch has no device guard for CUDA here"),
]
TABLE = table()
ROUNDING = 0.02  # of the peaks in the table
# Once a compilation has failed in the process, Python keeps an argument longer: one matrix of Muon.
KEPT = 0.08


def differences(expected: Row, found: Row) -> list[str]:
    """Says which numbers are others than in the table."""
    return [
        f"{step} step: {name} {number} -> {found[step][name]}: "
        + ("better: update the table" if found[step][name] < number else "worse")
        for step, numbers in expected.items()
        for name, number in numbers.items()
        if not _is_as_said(name, found[step][name], number)
    ]


def _is_as_said(name: str, found: float, number: float) -> bool:
    if name != "peak":
        return found == number
    return number - ROUNDING <= found <= number + KEPT


def test_the_table_has_all_cases() -> None:
    assert list(TABLE) == list(CASES)


def test_every_recipe_is_a_case() -> None:
    names = {name.partition(",")[0] for name in CASES}
    assert names.issuperset(dir(recipes))


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_of_the_device_what_the_table_says(name: str) -> None:
    steps = measure(CASES[name])
    found = row(CASES[name], steps)
    assert found.keys() == TABLE[name].keys()
    wrong = differences(TABLE[name], found)
    where = [f"{step} step:\n{places(counting)}" for step, counting in steps.items()]
    assert not wrong, "\n".join([*wrong, *where])


def test_what_a_difference_is_called() -> None:
    numbers = {"launches": 9, "syncs": 0, "copies": 3, "peak": 1.5}
    expected = {"ordinary": numbers}
    assert differences(expected, expected) == []
    for peak in (1.49, 1.51, 1.57):
        assert differences(expected, {"ordinary": {**numbers, "peak": peak}}) == []
    assert differences(expected, {"ordinary": {**numbers, "peak": 1.45}}) == [
        "ordinary step: peak 1.5 -> 1.45: better: update the table"
    ]
    found = {"ordinary": {**numbers, "syncs": 1, "copies": 2, "peak": 1.7}}
    assert differences(expected, found) == [
        "ordinary step: syncs 0 -> 1: worse",
        "ordinary step: copies 3 -> 2: better: update the table",
        "ordinary step: peak 1.5 -> 1.7: worse",
    ]
