"""Throwaway plugins: objects in this process, and distributions for another one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from projcore import registry
from projcore._scan import Found
from projcore.component import Plugin
from projcore.manager import Manager
from projcore.plugin import hookimpl


class Hooks:
    """Stands for a hook module."""

    def __init__(self, api: Any = 1) -> None:
        if api is not None:
            self.PROJCORE_API = api

    def implement(self, name: str, function: Callable[..., Any]) -> Hooks:
        function.__name__ = name
        setattr(self, name, hookimpl(function))
        return self


def plugin(
    projections: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
    recipes: Mapping[str, str] | None = None,
    api: Any = 1,
    **options: Any,
) -> Hooks:
    """A hook module that registers names with targets."""
    hooks = Hooks(api)
    given = {"projections": projections, "modules": modules, "recipes": recipes}
    for kind, names in given.items():
        if names is not None:
            hooks.implement(f"projcore_register_{kind}", _registers(names, options))
    return hooks


def _registers(names: Mapping[str, str], options: dict[str, Any]) -> Callable[[Any], None]:
    def hook(register: Any) -> None:
        for name, target in names.items():
            register(name, target, **{"summary": f"Does {name}.", **options})

    return hook


def found(
    name: str,
    hooks: Any,
    distribution: str | None = None,
    version: str = "1.0",
    editable: bool = False,
) -> Found:
    """What a scan returns for an installed plugin; loading raises `hooks` if it is an error."""

    def load() -> object:
        if isinstance(hooks, BaseException):
            raise hooks
        return hooks() if callable(hooks) else hooks

    distribution = distribution or f"dist-{name}"
    names = frozenset({name, distribution.replace("-", "_")})
    return Found(Plugin(name, distribution, version, f"{name}._plugin"), names, load, editable)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """The list of what is installed, empty at first; the registry finds nothing else."""
    listed: list[Found] = []
    for variable in ("PROJCORE_DISABLE_PLUGINS", "PROJCORE_PLUGINS", "PROJCORE_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(registry, "manager", Manager(lambda: list(listed)))
    return listed


class Site:
    """A folder of installed distributions, and a way to run Python with it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(
        self,
        name: str,
        hooks: str,
        *,
        version: str = "1.0",
        entry_point: str | None = None,
        metadata: str | None = None,
        entry_points: str | bytes | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes a distribution whose package holds the hook module; returns its dist-info."""
        package = name.replace("-", "_")
        folder = self.path / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "_plugin.py").write_text(textwrap.dedent(hooks))
        for file, text in (files or {}).items():
            (folder / file).write_text(textwrap.dedent(text))
        info = self.path / f"{package}-{version}.dist-info"
        info.mkdir()
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if metadata:
            (info / "METADATA").write_text(metadata)
        if entry_points is None:
            entry_points = f"[projcore]\n{entry_point or package} = {package}._plugin\n"
        if isinstance(entry_points, str):
            entry_points = entry_points.encode()
        (info / "entry_points.txt").write_bytes(entry_points)
        return info

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs code in a new Python that has these distributions beside our own."""
        return self._run(["-c", textwrap.dedent(code)], environment)

    def projcore(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line in a new Python."""
        code = "import sys; from projcore.cli import main; sys.exit(main())"
        return self._run(["-c", code, *arguments], environment)

    def _run(
        self, arguments: list[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if "PROJCORE" not in key}
        path = os.pathsep.join([str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])])
        clean |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return subprocess.run(
            [sys.executable, *arguments], env=clean, capture_output=True, text=True, check=False
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


GOOD = """
    from projcore.plugin import hookimpl
    PROJCORE_API = 1
    @hookimpl
    def projcore_register_modules(register):
        register("{name}", "{target}", summary="Does it.")
"""


@pytest.fixture
def good() -> Callable[..., str]:
    """The text of a hook module that registers one module."""

    def make(name: str, target: str = "fractions:Fraction") -> str:
        return GOOD.format(name=name, target=target)

    return make


@pytest.fixture(name="plugin")
def _plugin() -> Callable[..., Any]:
    return plugin


@pytest.fixture(name="found")
def _found() -> Callable[..., Found]:
    return found
