"""What ``projcore new-plugin`` writes works: built, installed and tested as its author would."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from projcore.cli import main
from projcore.cli.new_plugin import BY_KIND, FILES

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
Run = Callable[..., str]
Environment = Callable[..., Path]


@pytest.fixture(params=["projection", "module", "recipe", "command", "basis", "combine"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def scaffold(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / "scaffold"
    words = ["--kind", kind, "--directory", str(folder), "--author", 'Ada "A." Łovelace']
    assert main(["new-plugin", "new-thing", *words]) == 0
    return folder


@pytest.fixture
def python(
    tmp_path: Path,
    scaffold: Path,
    environment: Environment,
    build_wheel: Callable[[Path, Path], None],
) -> Path:
    """An interpreter with the wheels of the kernel and of the new plugin, nothing else of ours."""
    build_wheel(scaffold, tmp_path / "wheel")
    return environment("projcore-new-thing", find_links=(tmp_path / "wheel",))


def installed(python: Path, run: Run, cwd: Path) -> Path:
    """Returns the folder of the installed plugin, after a look at where things come from."""
    script = "import projcore, projcore_new_thing as it; print(projcore.__file__, it.__file__)"
    kernel, plugin = map(Path, run(python, "-c", script, cwd=cwd).split())
    purelib = plugin.parents[1]
    assert purelib.is_relative_to(python.parents[1])
    assert kernel.parents[1] == purelib
    return plugin.parent


def counts(output: str) -> dict[str, int]:
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", output.splitlines()[-1])
    return {word: int(number) for number, word in found}


def test_its_own_suite_passes_and_its_readme_runs(
    kind: str, scaffold: Path, python: Path, environment: Environment, run: Run
) -> None:
    package = installed(python, run, scaffold)
    assert (package / "py.typed").is_file()
    output = run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=scaffold)
    assert counts(output).keys() - {"skipped"} == {"passed"}
    assert counts(output)["passed"] > (20 if kind in ("projection", "module") else 8)
    assert "by hand" not in output  # as packaging checks would say that are skipped
    environment("projcore[adaptive,basic]")  # as its README says; into the same environment
    assert " 0 failed" in run(python.parent / "projcore", "check", "new_thing", cwd=scaffold)
    blocks = re.findall(r"```python\n(.*?)```", (scaffold / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == (kind != "command")
    for code in blocks:
        code += "model(torch.ones(1, 4)).sum().backward()\noptimizer.step()\nprint(optimizer)\n"
        printed = "adamw(" if kind == "recipe" else "new_thing("
        assert printed in run(python, "-W", "error", "-c", code, cwd=scaffold)


@pytest.mark.parametrize("kind", ["projection"], indirect=True)
def test_a_law_that_is_broken_fails_and_says_how_to_mend_it(
    scaffold: Path, python: Path, run: Run
) -> None:
    file = installed(python, run, scaffold) / "new_thing.py"
    text = file.read_text()
    assert 'rotate(tensor, values["angle"])' in text
    file.write_text(text.replace('rotate(tensor, values["angle"])', "tensor"))
    output = run(python, "-m", "pytest", "-x", "-p", "no:cacheprovider", cwd=scaffold, code=1)
    assert counts(output)["failed"] == 1
    assert (
        "new_thing(angle=0.5) breaks the law 'round_trip': project(unproject(z)) is not z for "
        "current='params': tensor 0 (shape ("
    ) in output
    assert 'project must apply a left inverse of unproject for "params".' in output


@pytest.mark.parametrize("kind", ["module"], indirect=True)
def test_packaging_that_is_broken_fails_and_says_how_to_mend_it(
    scaffold: Path, python: Path, run: Run
) -> None:
    package = installed(python, run, scaffold)
    (package / "py.typed").unlink()
    hooks = package / "_plugin.py"
    text = hooks.read_text()
    hooks.write_text(
        text.replace("hookimpl\n", "PROJCORE_API, hookimpl\n", 1)
        .replace("PROJCORE_API = 1\n", "import torch\n")
        .replace("tags=()", 'tags=(), aliases=("adam",)')
    )
    (metadata,) = package.parent.glob("projcore_new_thing-*/METADATA")
    metadata.write_text(metadata.read_text().replace("Requires-Dist: projcore", "Requires-Dist: p"))
    output = run(python.parent / "projcore", "check", "new_thing", cwd=scaffold, code=1)
    for law, what, mend in [
        ("torch_free", "Finding it imports torch", "let projcore.plugin.lazy import them"),
        ("api", "takes PROJCORE_API from elsewhere", "Write the number: PROJCORE_API = 1."),
        ("requires", "does not depend on projcore", "Add 'projcore' to the dependencies"),
        ("typed", "projcore_new_thing has no py.typed", "Add an empty file py.typed beside"),
        ("names", "the name 'adam', which projcore-adaptive has too", "Choose another."),
    ]:
        (line,) = [each for each in output.splitlines() if f"failed {law}: " in each]
        assert f"new_thing breaks the law {law!r}: " in line
        assert what in line
        assert mend in line
    assert "5 failed" in output.splitlines()[-1]


def test_linters_find_nothing(scaffold: Path, run: Run) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=scaffold)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--diff", ".", cwd=scaffold)
    # A cache of its own: it takes long the first time, and would push out that of our code.
    cache = ROOT / ".mypy_cache" / "scaffold"
    run(sys.executable, "-m", "mypy", "--cache-dir", cache, cwd=scaffold)


@pytest.mark.parametrize("name", ["x", "a-name-of-thirty-letters-as-it"])
def test_short_and_long_names_are_formatted_alike(
    name: str, kind: str, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / name
    assert main(["new-plugin", name, "--kind", kind, "--directory", str(folder)]) == 0
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=folder)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--diff", ".", cwd=folder)


def test_every_template_is_used() -> None:
    templates = {path.name for path in (ROOT / "projcore" / "templates").iterdir()}
    kinds = [{"kind": kind, "hooks": texts["hooks"]} for kind, texts in BY_KIND.items()]
    assert templates == {f"{each.format_map(k)}.tmpl" for each in FILES.values() for k in kinds}
