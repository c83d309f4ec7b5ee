"""What is imported from here, for type checkers. Written by tools/known.py; do not edit."""

# mypy: disable-error-code="import-not-found"
# pyright: reportMissingImports=false

from typing import Any

from projcore import ProjectionBase
from projcore_cast import *  # noqa: F403
from projcore_lowrank import *  # noqa: F403
from projcore_spectral import *  # noqa: F403
from projcore_structural import *  # noqa: F403

# Of a plugin that is not known here: what it takes and has is not known either.
class _ProjectionBase(ProjectionBase):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
    def project(self, *args: Any, **kwargs: Any) -> Any: ...
    def unproject(self, *args: Any, **kwargs: Any) -> Any: ...

def __getattr__(name: str) -> type[_ProjectionBase]: ...
