"""The wheels, not the checkout: they build, install into empty environments, and work there."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
Run = Callable[..., str]
Environment = Callable[..., Path]


def test_wheels_carry_types_and_licence(wheels: Path) -> None:
    names = {path.name: ZipFile(path).namelist() for path in wheels.glob("*.whl")}
    assert len(names) == len(PLUGINS) + 1
    for wheel, files in names.items():
        package = wheel.split("-")[0]
        assert f"{package}/py.typed" in files
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files), wheel
        assert {name.split("/")[0].split("-")[0] for name in files} == {package}


def sdist(folder: Path, out: Path, run: Run) -> Path:
    """Builds an sdist, and returns the folder that it unpacks to."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=folder)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


def test_the_sdist_of_the_kernel_holds_the_kernel_and_its_tests(tmp_path: Path, run: Run) -> None:
    unpacked = sdist(ROOT, tmp_path, run)
    assert {path.name for path in unpacked.iterdir()} <= {
        *("projcore", "tests", "conftest.py", "pyproject.toml", "PKG-INFO", ".gitignore"),
        *("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
    }
    tests = ["tests/kernel/test_values.py", "tests/discovery/test_formula.py"]
    assert "passed" in run(sys.executable, "-m", "pytest", "-q", *tests, cwd=unpacked)


@pytest.mark.parametrize("name", ["projcore-basic", "projcore-closure"])
def test_the_sdist_of_a_plugin_runs_its_tests(name: str, tmp_path: Path, run: Run) -> None:
    unpacked = sdist(ROOT / "plugins" / name, tmp_path, run)
    test = {"projcore-basic": "test_kinds.py", "projcore-closure": "test_product.py"}[name]
    out = run(sys.executable, "-m", "pytest", "-q", f"tests/{test}", cwd=unpacked)
    assert "passed" in out


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_installs_alone_and_loads(
    name: str, tmp_path: Path, environment: Environment, run: Run
) -> None:
    python = environment(name)
    script = """
import importlib, sys
import projcore
from projcore import registry

(plugin,) = registry.plugins()
assert (plugin.status, plugin.name) == ("loaded", sys.argv[1].removeprefix("projcore-")), plugin
for component in registry.components():
    registry.load_component(component)
package = importlib.import_module(sys.argv[1].replace("-", "_"))
print(projcore.__file__, package.__file__)
"""
    for file in run(python, "-W", "error", "-c", script, name, cwd=tmp_path).split():
        assert Path(file).is_relative_to(tmp_path)


def test_everything_installs_and_steps(tmp_path: Path, environment: Environment, run: Run) -> None:
    python = environment("projcore[all]")
    script = """
import torch, projcore
from projcore.projections import VectorProjection
from projcore.modules import Adam, LR

weight = torch.nn.Parameter(torch.ones(3))
optimizer = projcore.Optimizer([weight], VectorProjection([Adam()]), LR(0.5))
weight.square().sum().backward()
optimizer.step()
print([round(value, 5) for value in weight.tolist()])
"""
    assert run(python, "-W", "error", "-c", script, cwd=tmp_path) == "[0.5, 0.5, 0.5]\n"
    assert "adam" in run(tmp_path / "bin" / "projcore", "list", cwd=tmp_path)
