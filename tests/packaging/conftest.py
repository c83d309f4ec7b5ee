"""Wheels of this repository, and empty environments to install them into.

Third-party packages are not installed again: the environments see those of the running one
through links. Nothing is fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Runs a command away from the checkout, which is not on its sys.path.

    It must exit with that code; its output is returned.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["PYTHONSAFEPATH"] = "1"
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder: Path, out: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=folder)


@pytest.fixture(scope="session", name="run")
def run_fixture() -> Callable[..., str]:
    return run


@pytest.fixture(scope="session", name="build_wheel")
def build_wheel_fixture() -> Callable[[Path, Path], None]:
    return build_wheel


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of the kernel and of all our plugins."""
    out = tmp_path_factory.mktemp("wheels")
    for folder in [ROOT, *(ROOT / "plugins" / name for name in PLUGINS)]:
        build_wheel(folder, out)
    return out


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    links = tmp_path_factory.mktemp("third_party")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "projcore" not in entry.name:
            (links / entry.name).symlink_to(entry)
    return links


@pytest.fixture
def environment(tmp_path: Path, third_party: Path, wheels: Path) -> Callable[..., Path]:
    """Makes an environment in `tmp_path`, installs requirements into it, returns its python.

    They come from our wheels, and from the folders in `find_links`.
    """

    def make(*requirements: str, find_links: tuple[Path, ...] = ()) -> Path:
        venv.create(tmp_path, with_pip=False)
        python = tmp_path / "bin" / "python"
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        purelib = Path(run(python, "-c", ask, cwd=tmp_path)[:-1])
        (purelib / "third_party.pth").write_text(f"{third_party}\n")
        pip = [sys.executable, "-m", "pip", "--python", python, "--isolated", "install", "-q"]
        links = [word for folder in (wheels, *find_links) for word in ("--find-links", folder)]
        run(*pip, "--no-index", *links, *requirements, cwd=tmp_path)
        return python

    return make
