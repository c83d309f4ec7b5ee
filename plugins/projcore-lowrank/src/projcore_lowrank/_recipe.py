"""Shared by recipes: descriptions of arguments, and parameters that a subspace excludes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from projcore import Module, Optimizer
from projcore.recipe import HIDDEN, Params, Project, Spec, Way, documented, routed
from projcore_lowrank._matrices import Folding, matrix_shape

Recipe = TypeVar("Recipe", bound=Callable[..., Optimizer])
ARGUMENTS = {
    "beta": "The decay of the momentum.",
    "dimension": "The number of coordinates.",
    "kind": "The kind of random directions, see `IntrinsicSubspace`.",
    "rank": "The rank of the subspace; a float is a fraction of the shorter side.",
    "scale": "A factor of the projected update.",
    "side": "The side to compress, see `LowRank`.",
    "refresh": "The method that computes a basis, see `LowRank`.",
    "stagger": "Whether to spread refreshes over steps.",
    "limit": "The maximum growth factor of the limited norm in a step; None for no limit.",
    "chain": "How seeds are derived, see `RandomBasis`.",
    "beta2_decay": "The exponent of the step count in one minus the decay.",
    "error_feedback": "Whether to add the residual to the next gradient.",
}


UNCORRECTED = "The eps of Adam, added to the root of the uncorrected second moment."
LEAST = "The lower bound of the root of a second moment."
ROOT = "Its square root is a factor of the update, as in the authors' code."


def recipe(
    example: Mapping[str, Any] | None = None, **arguments: str
) -> Callable[[Recipe], Recipe]:
    """Completes a recipe's docstring, with an example; see `projcore.recipe.documented`."""
    return documented(example, **{**ARGUMENTS, **arguments})


def optimizer(
    name: str,
    params: Params,
    project: Project,
    rank: float | None,
    modules: Sequence[Spec],
    lr: float,
    weight_decay: float | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Returns the optimizer of these modules; groups that are not projected have no rank.

    Fixed settings have one value for all parameters, because another module depends on it.
    """
    ways = [Way(modules, project, settings={"rank": rank}), Way(None, settings={"rank": None})]
    return routed(name, params, ways, _ending(lr, weight_decay), fixed=fixed, unfit=_unfit)


def corrected(
    make: Callable[..., Module], betas: tuple[float, float], eps: float, **settings: Any
) -> list[Spec]:
    """Returns a subspace with Adam, followed by the bias correction.

    Both have betas, so that no scheduler cycles those of one only.
    """
    adam = {"adam": {"betas": betas, "eps": eps, "bias_correction": False}}
    return [make([adam], **settings), {"bias_correction": {"betas": betas}}]


def beside(
    name: str,
    params: Params,
    project: Project,
    inside: Spec,
    outside: Spec,
    lr: float,
    weight_decay: float,
    rank: float | None = None,
    default: str = HIDDEN,
    real: bool = False,
) -> Optimizer:
    """Returns an optimizer that runs another module on parameters that are not projected.

    Complex ones are among these, if the module for the others is for real numbers.
    """
    rules = default if project is None else project
    settings = {} if rank is None else {"rank": rank}
    others = Way(None if inside is outside else [outside])
    ways = [Way([inside], rules, "ndim>=2", settings), others]
    unfit = _unfit_or_complex if real else _unfit
    return routed(name, params, ways, _ending(lr, weight_decay), unfit=unfit)


def _ending(lr: float, weight_decay: float | None) -> list[Spec]:
    decay: list[Spec] = [] if weight_decay is None else [{"weight_decay": weight_decay}]
    return [*decay, {"lr": lr}]


def _unfit(parameter: Tensor, settings: Mapping[str, Any]) -> str | None:
    """Returns why a subspace would not compress a parameter; None if it would."""
    folding: Folding = "last2" if settings.get("folding") == "last2" else "fold"
    shape = matrix_shape(parameter.shape, folding)
    if shape is None:
        return "no matrix"
    rank = settings.get("rank")
    if rank is None:
        return "rank=None" if "rank" in settings else None
    if isinstance(rank, int) and min(shape[-2:]) <= rank:
        return f"a side within rank {rank}"
    return None


def _unfit_or_complex(parameter: Tensor, settings: Mapping[str, Any]) -> str | None:
    return "complex numbers" if parameter.is_complex() else _unfit(parameter, settings)
