"""Projections that only rearrange the elements of tensors, and routing."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_structural.freeze import Freeze
    from projcore_structural.layout import ScalarProjection, VectorProjection
    from projcore_structural.route import Route

__all__ = ["Freeze", "Route", "ScalarProjection", "VectorProjection"]

__getattr__ = lazy(
    __name__, Freeze="freeze", Route="route", ScalarProjection="layout", VectorProjection="layout"
)
