"""Writes projcore/_known.py, by which messages can say what to install.

Run it after a component was added, renamed or removed::

    python tools/known.py
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "projcore" / "_known.py"

HEAD = '''\
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


'''


def render() -> str:
    """Returns the text of the file, from the hook modules under plugins/."""
    components: list[tuple[str, ...]] = []
    commands: dict[str, str] = {}
    for path in sorted(ROOT.glob("plugins/*/src/*/_plugin.py")):
        extra = path.parents[2].name.removeprefix("projcore-")
        module = _load(path)
        for kind in ("projection", "module", "recipe"):
            hook = getattr(module, f"projcore_register_{kind}s", None)
            if hook is not None:
                hook(_Recorder(kind, extra, components))
        if hasattr(module, "projcore_add_commands"):
            subparsers = argparse.ArgumentParser().add_subparsers()
            module.projcore_add_commands(subparsers)
            commands |= dict.fromkeys(subparsers.choices, extra)
    lines = [f"    Known({', '.join(values)}),\n" for values in sorted(components)]
    entries = [f'    "{name}": "{extra}",\n' for name, extra in sorted(commands.items())]
    return (
        f"{HEAD}KNOWN: tuple[Known, ...] = (\n{''.join(lines)})\n\n"
        f"COMMANDS: dict[str, str] = {{\n{''.join(entries)}}}\n"
    )


class _Recorder:
    def __init__(self, kind: str, extra: str, found: list[tuple[str, ...]]) -> None:
        self.kind, self.extra, self.found = kind, extra, found

    def __call__(
        self, name: str, target: str, *, aliases: tuple[str, ...] = (), **_: object
    ) -> None:
        values = [f'"{value}"' for value in (self.kind, name, target.partition(":")[2], self.extra)]
        if aliases:
            names = ", ".join(f'"{alias}"' for alias in aliases)
            values.append(f"({names},)" if len(aliases) == 1 else f"({names})")
        self.found.append(tuple(values))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name + "_hooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
