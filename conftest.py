"""Which tests run, and in which order.

A test whose product of parameters is large says so with ``@pytest.mark.pairwise``. Of its cases run
those of a selection in which each pair of values of two parameters occurs that occurs in the
product, and with ``--exhaustive`` all. ``@pytest.mark.exhaustive`` leaves a test to that run, and
``@pytest.mark.long``, of a file that takes long, lets it begin first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--exhaustive``."""
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run every case of each product of parameters, as make test-all does",
    )


@pytest.fixture(scope="session")
def exhaustive(pytestconfig: pytest.Config) -> bool:
    """Whether every case is to be run."""
    return bool(pytestconfig.getoption("--exhaustive"))


@pytest.fixture(scope="session")
def backend(exhaustive: bool) -> str:
    """A backend of torch.compile. Torch's own takes seconds for each graph; both trace alike."""
    return "inductor" if exhaustive else "aot_eager"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names a set by its sorted elements; processes that share tests must name them alike."""
    return "+".join(sorted(map(str, val))) or "none" if isinstance(val, (set, frozenset)) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what only an exhaustive run takes, and puts first what takes longest."""
    if not config.getoption("--exhaustive"):
        left_out = _left_out(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    # Whole files are dealt out (--dist loadfile). Those that take longest come first, or one worker
    # would be left with them when the others have done all: the marked ones, then by tests.
    counts = Counter(item.path for item in items)
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: (item.path not in long, -counts[item.path], str(item.path)))


def _left_out(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Returns the tests that only an exhaustive run takes."""
    left_out = {item for item in items if item.get_closest_marker("exhaustive")}
    products: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise"):
            assert isinstance(item, pytest.Function)
            products[item.nodeid.partition("[")[0]].append(item)
    for cases in products.values():
        chosen = pairwise(
            [[id(value) for value in case.callspec.params.values()] for case in cases]
        )
        left_out.update(case for i, case in enumerate(cases) if i not in chosen)
    return left_out


def pairwise(rows: Sequence[Sequence[int]]) -> set[int]:
    """Returns the numbers of few rows in which all pairs of values of two columns occur.

    All pairs that occur in the rows, that is. The choice is always the same: again and again the
    first of the rows that have most new pairs.
    """
    pairs = [set(combinations(enumerate(row), min(2, len(row)))) for row in rows]
    missing = set().union(*pairs)
    chosen: set[int] = set()
    while missing:
        best = max(range(len(rows)), key=lambda i: len(pairs[i] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen
