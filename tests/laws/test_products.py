"""What `make test` takes of a product of parameters, and what a fault is put in place of."""

from __future__ import annotations

import itertools
import runpy
from importlib import import_module
from pathlib import Path

import pytest

pairwise = runpy.run_path(str(Path(__file__).parents[2] / "conftest.py"))["pairwise"]
atomic = import_module("projcore.testing.laws.atomic")  # the module, not the law

PRODUCTS = [(4,), (3, 5), (2, 3, 4), (4, 4, 4, 4), (2, 2, 2, 2, 2, 2), (6, 1, 2)]


@pytest.mark.parametrize("lengths", PRODUCTS, ids=str)
def test_all_pairs_of_values_occur(lengths):
    rows = list(itertools.product(*map(range, lengths)))
    chosen = [rows[i] for i in sorted(pairwise(rows))]
    for one, other in itertools.combinations(range(len(lengths)), 2):
        wanted = set(itertools.product(range(lengths[one]), range(lengths[other])))
        assert {(row[one], row[other]) for row in chosen} == wanted
    assert {row[0] for row in chosen} == set(range(lengths[0]))
    longest = sorted(lengths)[-2:]
    assert len(chosen) <= 2 * longest[0] * longest[-1]


def test_of_an_uneven_product_the_pairs_that_occur():
    rows = [("a", 1, "x"), ("a", 2, "x"), ("b", 2, "y"), ("b", 2, "y")]
    assert pairwise(rows) == {0, 1, 2}
    assert pairwise([]) == set()


def test_the_last_operation_of_each_line_is_chosen():
    places = [*"abc", *("loop" for _ in range(50)), *"de", *("again" for _ in range(50))]
    assert atomic._chosen(places, len(places)) == list(range(1, len(places) + 1))
    chosen = atomic._chosen(places, 20)
    assert len(chosen) == 20
    assert {1, 2, 3, 53, 54, 55, 105} <= set(chosen)
    assert atomic._chosen(places, 1) == [1, 2, 3, 53, 54, 55, 105]
