"""Projections that only rearrange the elements of tensors."""

from projcore_structural.layout import ScalarProjection, VectorProjection

__all__ = ["ScalarProjection", "VectorProjection"]
