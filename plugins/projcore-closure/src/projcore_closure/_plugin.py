"""Registers the methods that evaluate the closure; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
LINE_SEARCH = ("line_search",)


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "lbfgs",
        "projcore_closure:LBFGS",
        summary="Multiplies by an approximate inverse Hessian, made from the last steps.",
        paper="Liu & Nocedal, 1989, Mathematical Programming 45",
        tags=("quasi_newton",),
        example={},
    )
    register(
        "backtracking",
        "projcore_closure:Backtracking",
        summary="Shortens the step until the loss falls enough (Armijo's condition).",
        paper="Armijo, 1966, Pacific Journal of Mathematics 16",
        tags=LINE_SEARCH,
        example={},
    )
    register(
        "strong_wolfe",
        "projcore_closure:StrongWolfe",
        summary="Finds a step length by the strong Wolfe conditions.",
        paper="Nocedal & Wright, 2006, Numerical Optimization, algorithms 3.5 and 3.6",
        tags=LINE_SEARCH,
        example={},
    )
