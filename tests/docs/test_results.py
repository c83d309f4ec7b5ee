"""The page of results is what its script makes of comparisons."""

from __future__ import annotations

from typing import Any

import pytest

from docs import results
from docs.results import PAGE, PARTS, REFERENCE, Part, fill, read, text_table
from projcore_lab.compare import check
from projcore_lab.functions import FunctionTask
from projcore_lab.lineup import lineup
from projcore_lab.tasks import Task
from projcore_lab.text import Text

SPECS = (REFERENCE, "adamw(); lr(0.01)", "adafactor(lr=0.01)", "adam(); lr(1e30)", "lion(); lr(1)")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A part with one that diverges, one as AdamW, and one that was not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RUNS", tmp_path_factory.mktemp("results"))
        part = Part("text", SPECS, "--batch 2 --steps 3 --seeds 2 --target 100", seeds=2)
        patch.setitem(PARTS, "short", part)
        assert read("short") is None
        assert part.run("short", SPECS[:-1]) == 0
        data = read("short")
    assert data is not None
    return data


def test_the_table_says_what_was_found(found: dict[str, Any]) -> None:
    lines = text_table(found)
    reference = next(line for line in lines if line.startswith(f"| `{REFERENCE}`"))
    ours = next(line for line in lines if line.startswith("| `adamw(); lr(0.01)`"))
    assert "| +0.0% | 1.000 |" in reference
    assert "| +0.0% | 1.000 |" in ours or "| -0.0% | 1.000 |" in ours
    assert "* Diverged: `adam(); lr(1e30)`." in lines
    assert "* Not run yet: `lion`." in lines
    text = "\n".join(lines)
    assert "With at most a tenth of AdamW's state" in text
    assert "`adafactor(lr=0.01)` is best" in text


def test_the_page_has_a_place_for_every_table() -> None:
    page = PAGE.read_text("utf-8")
    for name in ("text-small", "text-large", "functions", "logistic"):
        assert "\nhere\n" in fill(page, name, ["here"])
        assert fill(fill(page, name, ["one"]), name, ["other"]) == fill(page, name, ["other"])
    with pytest.raises(ValueError, match="has no marks for 'mnist'"):
        fill(page, "mnist", [])


@pytest.mark.parametrize(
    ("name", "task"),
    [("text-small", Text(0)), ("text-large", Text(0)), ("beale", FunctionTask(0, "beale"))],
)
def test_every_optimizer_of_the_page_can_be_made(name: str, task: Task) -> None:
    check(task, lineup(PARTS[name].specs, task))
