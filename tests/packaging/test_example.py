"""The example of a package from outside: its wheel works as its README says, away from here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[2] / "examples" / "projcore-kronecker"
Run = Callable[..., str]

RUN_BLOCKS = '''
"""Runs the Python blocks of a text in order; prints a line after each."""
import re, sys
from pathlib import Path

import projcore, projcore_kronecker

print(projcore.__file__, projcore_kronecker.__file__, sep="\\n")
text = Path(sys.argv[1]).read_text()
blocks = list(re.finditer(r"^```python\\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
assert len(blocks) == text.count("```python")  # none is missed
namespace = {"__name__": "readme"}
for block in blocks:
    print("block")
    before = text.count("\\n", 0, block.start(1))  # so that a traceback names the right line
    exec(compile("\\n" * before + block[1], sys.argv[1], "exec"), namespace)

# The class that was built step by step is the one that is shipped.
import torch

ends = []
for cls in (namespace["Learnt"], projcore_kronecker.Kronecker):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,))]
    optimizer = projcore.Optimizer(params, cls(["adam()"], period=2), "lr(0.1)")
    for _ in range(5):
        for param in params:
            param.grad = param.detach().sin() + 0.1 * torch.randn(param.shape)
        optimizer.step()
    ends.append(params)
assert all(map(torch.equal, *ends)), ends
'''


@pytest.fixture(scope="module")
def wheel(
    build_wheel: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("example")
    build_wheel(EXAMPLE, out)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_package(wheel: Path) -> None:
    archive = ZipFile(wheel)
    names = archive.namelist()
    package = {name.rpartition("/")[2] for name in names if name.startswith("projcore_kronecker/")}
    assert package == {"__init__.py", "_plugin.py", "kronecker.py", "py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    required = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    assert [line for line in required if "extra ==" not in line] == ["projcore~=0.1.0"]


def test_it_imports_public_names_only() -> None:
    for file in EXAMPLE.glob("*/**/*.py"):
        for module in re.findall(r"(?:from|import) (projcore[\w.]*)", file.read_text()):
            ours = ("projcore_kronecker", "projcore_kronecker.kronecker")
            public = ("projcore", "projcore.errors", "projcore.hookspecs", "projcore.plugin")
            assert module in (*ours, *public, "projcore.testing"), file


def test_it_works_from_its_wheel(
    wheel: Path, environment: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    python = environment("projcore-kronecker[dev]", find_links=(wheel.parent,))
    command = python.parent / "projcore"

    assert "kronecker" in run(command, "list", cwd=tmp_path)
    info = run(command, "info", "kronecker", cwd=tmp_path)
    assert "projcore-kronecker 0.1.0" in info
    assert "max_side" in info

    tests = tmp_path / "suite"
    tests.mkdir()
    for file in EXAMPLE.glob("tests/*.py"):
        (tests / file.name).write_text(file.read_text())
    (tests / "test_where.py").write_text(
        "import projcore, projcore_kronecker\n\n\n"
        "def test_where():\n"
        f"    for package in (projcore, projcore_kronecker):\n"
        f"        assert package.__file__.startswith({str(tmp_path)!r})\n"
    )
    options = ("-p", "no:cacheprovider", "-q", "-c", EXAMPLE / "pyproject.toml")
    done = run(python, "-m", "pytest", *options, "--rootdir", tests, tests, cwd=tmp_path)
    passed = re.search(r"(\d+) passed", done)
    assert passed, done
    assert int(passed[1]) > 30, done

    _check_readme(run(python, "-W", "error", "-c", RUN_BLOCKS, EXAMPLE / "README.md", cwd=tmp_path))


def _check_readme(printed: str) -> None:
    """Compares what the blocks of the README printed with what it says they print."""
    where, *blocks = printed.split("block\n")
    assert all("site-packages" in file for file in where.split())
    said = re.findall(r"^```(\w+)\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.M | re.S)
    number = 0
    compared = 0
    for language, text in said:
        if language == "python":
            number += 1
        elif language == "text":
            compared += 1
            assert _words(blocks[number - 1]) == _words(text)
    assert compared == 1
    plain, *rotated = map(float, blocks[-1].split())
    assert max(rotated) < plain / 2  # as its last words on training claim


def _words(text: str) -> list[str]:
    """The words of a text, without numbers, which differ from machine to machine."""
    return re.sub(r"\d[\d.e+-]*\b", "#", text).split()


def test_the_readme_registers_what_is_shipped() -> None:
    shipped = (EXAMPLE / "src/projcore_kronecker/_plugin.py").read_text()
    (block,) = re.findall(r"^    register\(\n.*?^    \)$", shipped, re.MULTILINE | re.DOTALL)
    assert block in (EXAMPLE / "README.md").read_text()


def test_the_scaffold_has_the_files_that_the_readme_speaks_of(run: Run, tmp_path: Path) -> None:
    run(Path(sys.executable).parent / "projcore", "new-plugin", "kronecker", cwd=tmp_path)
    ours = {
        file.relative_to(EXAMPLE)
        for pattern in ("*", "src/*/*", "tests/*")
        for file in EXAMPLE.glob(pattern)
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {file for file in ours if not (tmp_path / EXAMPLE.name / file).exists()} == set()
    assert len(ours) == 9
