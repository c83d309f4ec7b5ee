"""Registers the methods that evaluate the closure; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
LINE_SEARCH = ("line_search",)
GRADIENT_FREE = ("gradient_free",)


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "lbfgs",
        "projcore_closure:LBFGS",
        summary="L-BFGS two-loop recursion: an inverse Hessian from the last steps.",
        paper="Liu & Nocedal, 1989, Mathematical Programming 45",
        tags=("quasi_newton",),
        example={},
    )
    register(
        "backtracking",
        "projcore_closure:Backtracking",
        summary="Line search: halves the step until Armijo's sufficient decrease holds.",
        paper="Armijo, 1966, Pacific Journal of Mathematics 16",
        tags=LINE_SEARCH,
        example={},
    )
    register(
        "strong_wolfe",
        "projcore_closure:StrongWolfe",
        summary="Line search: brackets and zooms to the strong Wolfe conditions.",
        paper="Nocedal & Wright, 2006, Numerical Optimization, algorithms 3.5 and 3.6",
        tags=LINE_SEARCH,
        example={},
    )
    register(
        "newton_cg",
        "projcore_closure:NewtonCG",
        summary="Truncated Newton: conjugate gradients on Hessian-vector products.",
        paper="Nocedal & Wright, 2006, Numerical Optimization, algorithm 7.1",
        tags=("second_order",),
        example=[{}, {"max_iterations": 3, "tolerance": 1e-3, "central": True}],
    )
    register(
        "sam",
        "projcore_closure:SAM",
        summary="Sharpness-aware: the gradient at the worst point within a radius.",
        paper="arXiv:2010.01412",
        tags=("flat_minima",),
        example=[{}, {"rho": 0.5, "adaptive": True}],
    )
    register(
        "spsa",
        "projcore_closure:SPSA",
        summary="Zeroth-order: two losses along a random direction, as in MeZO.",
        paper="Spall, 1992, IEEE Transactions on Automatic Control 37",
        tags=(*GRADIENT_FREE, "stochastic"),
        example=[
            {},
            {"perturbation": 1e-2, "samples": 3, "seed": 7},
            {"perturbation": 1e-2, "samples": 2, "sides": 1, "distribution": "gaussian"},
            {"perturbation": 1e-2, "samples": 3, "sides": 1, "normalize": True},
        ],
    )
    register(
        "finite_difference",
        "projcore_closure:FiniteDifference",
        summary="Central differences: the gradient from two losses for each element.",
        paper="Nocedal & Wright, 2006, Numerical Optimization, equation 8.7",
        tags=GRADIENT_FREE,
        example=[{}, {"perturbation": 1e-4}],
    )
