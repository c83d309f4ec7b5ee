"""The Python blocks of each README.md and docs page run in order, as a reader types them."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_readme_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint
    text = readme.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python")  # none is missed
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        before = text.count("\n", 0, block.start(1))  # so that a traceback names the right line
        exec(compile("\n" * before + block[1], readme, "exec"), namespace)
