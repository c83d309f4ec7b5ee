"""Smaller subspaces: low-rank, random and coordinate, and the published methods built on them."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_lowrank.low_rank import GaLore, LowRank

__all__ = ["GaLore", "LowRank"]

__getattr__ = lazy(__name__, GaLore="low_rank", LowRank="low_rank")
