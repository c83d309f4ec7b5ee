"""Settings: the values that modules read from parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]
"""The settings of a module for one tensor, by name: its defaults, overridden by the group's."""
