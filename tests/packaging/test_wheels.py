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


def test_sdist_of_the_kernel_holds_the_kernel_only(tmp_path: Path, run: Run) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    assert top <= {"projcore", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}


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
