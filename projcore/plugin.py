"""The names that the author of a plugin imports.

A distribution has one entry point in the group ``projcore``, which names a small module. That
module imports neither torch nor the classes it registers, and neither may the ``__init__.py`` of
its package, which Python runs first: `lazy` helps there::

    # pyproject.toml
    [project.entry-points.projcore]
    rotations = "projcore_rotations._plugin"

    # projcore_rotations/_plugin.py
    from projcore.plugin import hookimpl

    PROJCORE_API = 1  # the plugin API for which this was written


    @hookimpl
    def projcore_register_projections(register):
        register("rotation", "projcore_rotations:Rotation", summary="Rotates pairs of elements.")

    # projcore_rotations/__init__.py
    from projcore.plugin import lazy

    __all__ = ["Rotation"]
    __getattr__ = lazy(__name__, Rotation="rotation")  # from projcore_rotations/rotation.py

The hooks are described in `projcore.hookspecs`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pluggy

__all__ = ["PROJCORE_API", "PROJCORE_API_FLOOR", "hookimpl", "lazy"]

PROJCORE_API = 1
"""The plugin API that this version of projcore speaks."""

PROJCORE_API_FLOOR = 1
"""The oldest plugin API that it still speaks."""

hookspec = pluggy.HookspecMarker("projcore")

hookimpl = pluggy.HookimplMarker("projcore")
"""Marks a function as the implementation of the hook that has its name."""


def lazy(package: str, **places: str) -> Callable[[str], Any]:
    """Returns a package's ``__getattr__`` that imports the module of a name on first use.

    Args:
        package: Its ``__name__``.
        places: For each name, the submodule that defines it.
    """

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return __getattr__
