"""Modules that evaluate the objective: backtracking, strong Wolfe line search, L-BFGS."""

from projcore_closure.backtracking import Backtracking
from projcore_closure.lbfgs import LBFGS
from projcore_closure.strong_wolfe import StrongWolfe

__all__ = ["LBFGS", "Backtracking", "StrongWolfe"]
