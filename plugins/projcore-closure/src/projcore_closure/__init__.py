"""Modules that evaluate the objective: backtracking, strong Wolfe line search, L-BFGS."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_closure.backtracking import Backtracking
    from projcore_closure.lbfgs import LBFGS
    from projcore_closure.strong_wolfe import StrongWolfe

__all__ = ["LBFGS", "Backtracking", "StrongWolfe"]

__getattr__ = lazy(__name__, LBFGS="lbfgs", Backtracking="backtracking", StrongWolfe="strong_wolfe")
