"""All installed projections: ``from projcore.projections import VectorProjection``."""

from __future__ import annotations

from typing import Any

from projcore import registry as _registry


def __getattr__(name: str) -> Any:
    return _registry.import_name("projection", name, __name__)


def __dir__() -> list[str]:
    return _registry.importable("projection")
