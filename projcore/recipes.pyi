"""What is imported from here, for type checkers. Written by tools/known.py; do not edit.

A component of a plugin that is not ours is imported from its own package where types are checked.
"""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from projcore_adaptive.recipes import *  # noqa: F403
from projcore_lowrank.recipes import *  # noqa: F403
