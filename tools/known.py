"""Writes what the kernel knows of our own plugins, installed or not.

That is ``projcore/_known.py``, by which messages can say what to install, and the stubs
``projcore/projections.pyi``, ``modules.pyi``, ``choices.pyi`` and ``recipes.pyi``, by which type
checkers and editors see what is imported by name. Run it after a component was added, renamed or
removed::

    python tools/known.py
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("projection", "module", "choice", "recipe")

KNOWN = '''\
"""What our own plugins provide, installed or not. Written by tools/known.py; do not edit."""

from __future__ import annotations

from typing import NamedTuple

from projcore.component import Kind


class Known(NamedTuple):
    """A component of one of our plugins."""

    kind: Kind
    name: str
    attribute: str
    extra: str
    aliases: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        return f"projcore-{self.extra}"


KNOWN: tuple[Known, ...] = (
%s)

COMMANDS: dict[str, str] = {
%s}

# Of each name of a setting, the components that have it.
SETTINGS: dict[str, tuple[str, ...]] = {
%s}
'''

# A star binds what an installed plugin has and nothing of one that is missing, so that each other
# name is an error, as it is when the program runs.
STUB = '''\
"""What is imported from here, for type checkers. Written by tools/known.py; do not edit.

A component of a plugin that is not ours is imported from its own package where types are checked.
"""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

{imports}'''


class Registered(NamedTuple):
    """A component, as a plugin registers it."""

    kind: str
    name: str
    target: str
    extra: str
    aliases: tuple[str, ...]
    example: Any


def texts() -> dict[str, str]:
    """Returns the text of each file, by its path in the repository."""
    components: list[Registered] = []
    commands: dict[str, str] = {}
    for path in sorted(ROOT.glob("plugins/*/src/*/_plugin.py")):
        extra = path.parents[2].name.removeprefix("projcore-")
        module = _load(path)
        for kind in KINDS:
            hook = getattr(module, f"projcore_register_{kind}s", None)
            if hook is not None:
                hook(_Recorder(kind, extra, components))
        if hasattr(module, "projcore_add_commands"):
            subparsers = argparse.ArgumentParser().add_subparsers()
            module.projcore_add_commands(subparsers)
            commands |= dict.fromkeys(subparsers.choices, extra)
    return {
        "projcore/_known.py": _known(components, commands),
        **{f"projcore/{kind}s.pyi": _stub(kind, components) for kind in KINDS},
    }


def _known(components: list[Registered], commands: dict[str, str]) -> str:
    lines = []
    for each in sorted(components, key=lambda each: each[:3]):
        attribute = each.target.partition(":")[2]
        values = [f'"{value}"' for value in (each.kind, each.name, attribute, each.extra)]
        if each.aliases:
            names = ", ".join(f'"{alias}"' for alias in each.aliases)
            values.append(f"({names},)" if len(each.aliases) == 1 else f"({names})")
        lines.append(f"    Known({', '.join(values)}),\n")
    entries = [f'    "{name}": "{extra}",\n' for name, extra in sorted(commands.items())]
    return KNOWN % ("".join(lines), "".join(entries), "".join(_settings(components)))


def _settings(components: list[Registered]) -> Iterator[str]:
    """Yields a line for each name of a setting; the classes are imported and built for that."""
    owners: dict[str, set[str]] = {}
    for each in components:
        if each.kind not in ("projection", "module"):
            continue
        module, _, attribute = each.target.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        examples = each.example if isinstance(each.example, Sequence) else [each.example or {}]
        for example in examples:
            inside = {"modules": ["lr(0.1)"]} if each.kind == "projection" else {}
            for name in cls(**inside, **example).defaults:
                owners.setdefault(name, set()).add(each.name)
    for name, found in sorted(owners.items()):
        names = ", ".join(f'"{each}"' for each in sorted(found))
        yield _wrapped(f'    "{name}": ({names}{"," * (len(found) == 1)}),\n', sorted(found))


def _wrapped(line: str, names: Sequence[str]) -> str:
    if len(line) <= 101:
        return line
    head = line.partition("(")[0]
    return head + "(\n" + "".join(f'        "{name}",\n' for name in names) + "    ),\n"


def _stub(kind: str, components: list[Registered]) -> str:
    places = {each.target.partition(":")[0] for each in components if each.kind == kind}
    lines = (f"from {place} import *  # noqa: F403\n" for place in sorted(places))
    return STUB.format(imports="".join(lines))


class _Recorder:
    def __init__(self, kind: str, extra: str, found: list[Registered]) -> None:
        self.kind, self.extra, self.found = kind, extra, found

    def __call__(
        self,
        name: str,
        target: str,
        *,
        aliases: tuple[str, ...] = (),
        example: Any = None,
        **_: object,
    ) -> None:
        self.found.append(Registered(self.kind, name, target, self.extra, tuple(aliases), example))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name + "_hooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    for path, text in texts().items():
        (ROOT / path).write_text(text, encoding="utf-8")
