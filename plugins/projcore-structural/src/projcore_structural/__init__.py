"""Projections that only rearrange the elements of tensors."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_structural.layout import ScalarProjection, VectorProjection

__all__ = ["ScalarProjection", "VectorProjection"]

__getattr__ = lazy(__name__, ScalarProjection="layout", VectorProjection="layout")
