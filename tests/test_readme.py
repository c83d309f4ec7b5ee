"""The Python blocks of each README.md and docs page run in order, as a reader types them.

What a block prints is compared with the text block right after it, if there is one. A page that
needs packages beside ours says so in a comment, and runs where they are: in `make ecosystem`.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<output>.*?)^```$)?",
    flags=re.MULTILINE | re.DOTALL,
)


NEEDS = re.compile(r"^<!-- needs: (?P<packages>.*) -->$", flags=re.MULTILINE)


# What torch says of itself when ZeroRedundancyOptimizer is imported.
@pytest.mark.filterwarnings("ignore:.*torch\\.jit\\.:DeprecationWarning")
@pytest.mark.parametrize("readme", READMES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_readme_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint
    text = readme.read_text(encoding="utf-8")
    if needs := NEEDS.search(text):
        for package in needs["packages"].split():
            pytest.importorskip(package, reason="`make ecosystem` has it")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")  # none is missed
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        before = text.count("\n", 0, block.start("code"))  # a traceback names the right line
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * before + block["code"], readme, "exec"), namespace)
        if block["output"] is not None:
            assert printed.getvalue().strip() == block["output"].strip(), f"line {before}"
