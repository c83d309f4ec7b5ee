"""What is imported from here, for type checkers. Written by tools/known.py; do not edit.

A component of a plugin that is not ours is imported from its own package where types are checked.
"""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from projcore_adaptive import *  # noqa: F403
from projcore_basic import *  # noqa: F403
from projcore_closure import *  # noqa: F403
from projcore_structural import *  # noqa: F403
