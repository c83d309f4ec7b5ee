"""The wheels, not the checkout: they build, install into empty environments, and work there.

Third-party packages are not installed again: the environments see those of the running one
through links. Nothing is fetched.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def run(*command: str | Path, cwd: Path) -> str:
    # Away from the checkout, and without its folder on sys.path.
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheels")
    for folder in [ROOT, *(ROOT / "plugins" / name for name in PLUGINS)]:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=folder)
    return out


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    links = tmp_path_factory.mktemp("third_party")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "projcore" not in entry.name:
            (links / entry.name).symlink_to(entry)
    return links


def environment(folder: Path, third_party: Path, wheels: Path, *requirements: str) -> Path:
    """Makes an environment, installs `requirements` from `wheels`, returns its python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)[:-1]
    )
    (purelib / "third_party.pth").write_text(f"{third_party}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "--isolated", "install", "-q"]
    run(*pip, "--no-index", "--find-links", wheels, *requirements, cwd=folder)
    return python


def test_wheels_carry_types_and_licence(wheels: Path) -> None:
    names = {path.name: ZipFile(path).namelist() for path in wheels.glob("*.whl")}
    assert len(names) == len(PLUGINS) + 1
    for wheel, files in names.items():
        package = wheel.split("-")[0]
        assert f"{package}/py.typed" in files
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files), wheel
        assert {name.split("/")[0].split("-")[0] for name in files} == {package}


def test_sdist_of_the_kernel_holds_the_kernel_only(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    assert top <= {"projcore", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_installs_alone_and_loads(
    name: str, tmp_path: Path, third_party: Path, wheels: Path
) -> None:
    python = environment(tmp_path, third_party, wheels, name)
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


def test_everything_installs_and_steps(tmp_path: Path, third_party: Path, wheels: Path) -> None:
    python = environment(tmp_path, third_party, wheels, "projcore[all]")
    script = """
import torch, projcore
from projcore.projections import VectorProjection
from projcore.modules import Adam, LR

weight = torch.nn.Parameter(torch.ones(3))
optimizer = projcore.Optimizer([weight], VectorProjection([Adam()]), LR(0.5))
weight.square().sum().backward()
optimizer.step()
print(weight.tolist())
"""
    assert run(python, "-W", "error", "-c", script, cwd=tmp_path) == "[0.5, 0.5, 0.5]\n"
    assert "adam" in run(tmp_path / "bin" / "projcore", "list", cwd=tmp_path)
