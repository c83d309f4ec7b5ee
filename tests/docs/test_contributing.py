"""CONTRIBUTING.md's map of the source names every file of the kernel, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["core", "engine", "report"])
def test_the_map_names_every_file_of_the_kernel(folder: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    head = re.search(rf"^### .*`projcore/{folder}/`\n(.*?)^###? ", text + "## ", re.M | re.S)
    assert head
    named = re.findall(r"^\| `([\w/]+\.py)` \| .+ \|$", head[1], flags=re.MULTILINE)
    here = ROOT / "projcore" / folder
    files = {path.relative_to(here).as_posix() for path in here.rglob("*.py")}
    assert set(named) == {name for name in files if not name.endswith("__init__.py")}
    assert len(named) == len(set(named))
