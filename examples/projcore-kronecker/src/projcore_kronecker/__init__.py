"""A projection that rotates matrices from both sides."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_kronecker.kronecker import Kronecker

__all__ = ["Kronecker"]

__getattr__ = lazy(__name__, Kronecker="kronecker")
