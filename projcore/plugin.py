"""What the author of a plugin imports.

A distribution has one entry point in the group ``projcore``, which names a small module. That
module imports neither torch nor the classes it registers::

    # pyproject.toml
    [project.entry-points.projcore]
    rotations = "projcore_rotations._plugin"

    # projcore_rotations/_plugin.py
    from projcore.plugin import hookimpl

    PROJCORE_API = 1  # write the number: it says which plugin API this was written for


    @hookimpl
    def projcore_register_projections(register):
        register("rotation", "projcore_rotations:Rotation", summary="Rotates pairs of elements.")

The hooks are described in `projcore.hookspecs`.
"""

from __future__ import annotations

import pluggy

__all__ = ["PROJCORE_API", "PROJCORE_API_FLOOR", "hookimpl"]

PROJCORE_API = 1
"""The plugin API that this version of projcore speaks."""

PROJCORE_API_FLOOR = 1
"""The oldest plugin API that it still speaks."""

hookspec = pluggy.HookspecMarker("projcore")

hookimpl = pluggy.HookimplMarker("projcore")
"""Marks a function as the implementation of the hook that has its name."""
