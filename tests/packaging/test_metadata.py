"""The distributions of this repository agree with one another."""

import sys
from pathlib import Path
from typing import Any

import pytest

import projcore

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


KERNEL = project(ROOT)
EXTRAS = KERNEL["optional-dependencies"]
COMPATIBLE = f"~={KERNEL['version']}"
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def test_there_are_plugins() -> None:
    assert PLUGINS


def test_kernel_says_its_version() -> None:
    assert projcore.__version__ == KERNEL["version"]


@each_plugin
def test_plugin_is_in_lock_step_with_the_kernel(folder: Path) -> None:
    plugin = project(folder)
    assert plugin["name"] == folder.name
    for field in ("version", "requires-python", "license", "authors"):
        assert plugin[field] == KERNEL[field], field
    assert f"projcore{COMPATIBLE}" in plugin["dependencies"]
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@each_plugin
def test_plugin_depends_on_no_other_plugin(folder: Path) -> None:
    assert not [name for name in project(folder)["dependencies"] if name.startswith("projcore-")]


@each_plugin
def test_plugin_has_one_entry_point_under_its_short_name(folder: Path) -> None:
    short = folder.name.removeprefix("projcore-")
    package = folder.name.replace("-", "_")
    assert project(folder)["entry-points"] == {"projcore": {short: f"{package}._plugin"}}
    assert (folder / "src" / package / "_plugin.py").is_file()
    assert (folder / "src" / package / "py.typed").is_file()


def test_extras_are_the_plugins() -> None:
    wanted = {p.name.removeprefix("projcore-"): [f"{p.name}{COMPATIBLE}"] for p in PLUGINS}
    wanted["all"] = [f"{p.name}{COMPATIBLE}" for p in PLUGINS]
    assert {name: sorted(EXTRAS[name]) for name in EXTRAS if name != "test"} == wanted


def test_development_installs_every_plugin() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert {line for line in lines if line.startswith("-e plugins/")} == {
        f"-e plugins/{folder.name}" for folder in PLUGINS
    }
