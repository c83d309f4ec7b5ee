"""Projections that change the dtype or the device of tensors."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_cast.to import To
    from projcore_cast.view_as_real import ViewAsReal

__all__ = ["To", "ViewAsReal"]

__getattr__ = lazy(__name__, To="to", ViewAsReal="view_as_real")
