"""Modules that evaluate the objective: line searches, L-BFGS, Newton's method, SAM, SPSA."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_closure.backtracking import Backtracking
    from projcore_closure.finite_difference import FiniteDifference
    from projcore_closure.lbfgs import LBFGS
    from projcore_closure.newton_cg import NewtonCG
    from projcore_closure.sam import SAM
    from projcore_closure.spsa import SPSA
    from projcore_closure.strong_wolfe import StrongWolfe

__all__ = ["LBFGS", "SAM", "SPSA", "Backtracking", "FiniteDifference", "NewtonCG", "StrongWolfe"]

__getattr__ = lazy(
    __name__,
    LBFGS="lbfgs",
    SAM="sam",
    SPSA="spsa",
    Backtracking="backtracking",
    FiniteDifference="finite_difference",
    NewtonCG="newton_cg",
    StrongWolfe="strong_wolfe",
)
