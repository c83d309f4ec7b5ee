"""All installed recipes: ``from projcore.recipes import galore_adamw``."""

from __future__ import annotations

from typing import Any

from projcore import registry as _registry


def __getattr__(name: str) -> Any:
    if name == "__all__":  # not before it is asked for: to know it is to import all of them
        return _registry.all_of("recipe", __name__)
    return _registry.import_name("recipe", name, __name__)


def __dir__() -> list[str]:
    return _registry.importable("recipe")
