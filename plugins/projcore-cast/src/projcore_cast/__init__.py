"""Projections that change the dtype or the device of tensors."""

from projcore_cast.to import To
from projcore_cast.view_as_real import ViewAsReal

__all__ = ["To", "ViewAsReal"]
