"""What is imported from here, for type checkers. Written by tools/known.py; do not edit."""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from collections.abc import Callable

from projcore import Optimizer
from projcore_adaptive.recipes import *  # noqa: F403
from projcore_lowrank.recipes import *  # noqa: F403

def __getattr__(name: str) -> Callable[..., Optimizer]: ...
