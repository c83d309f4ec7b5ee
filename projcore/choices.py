"""All installed choices: ``from projcore.choices import SVD``."""

from __future__ import annotations

from typing import Any

from projcore import registry as _registry


def __getattr__(name: str) -> Any:
    if name == "__all__":  # not before it is asked for: to know it is to import all of them
        return _registry.all_of("choice", __name__)
    return _registry.import_name("choice", name, __name__)


def __dir__() -> list[str]:
    return _registry.importable("choice")
