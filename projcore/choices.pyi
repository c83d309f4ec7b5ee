"""What is imported from here, for type checkers. Written by tools/known.py; do not edit."""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from typing import Any

from projcore import Choice
from projcore_lowrank import *  # noqa: F403

# Of a plugin that is not known here: what it takes and has is not known either.
class _Choice(Choice):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

def __getattr__(name: str) -> type[_Choice]: ...
