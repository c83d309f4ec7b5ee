"""Modules that evaluate the objective: backtracking, strong Wolfe line search, L-BFGS."""
