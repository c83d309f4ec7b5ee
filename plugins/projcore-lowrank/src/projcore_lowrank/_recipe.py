"""Shared by recipes: descriptions of arguments, and which parameters a subspace leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from projcore import Module, Optimizer
from projcore.recipe import HIDDEN, Params, Project, Spec, Way, documented, routed
from projcore_lowrank._matrices import Folding, matrix_shape

Recipe = TypeVar("Recipe", bound=Callable[..., Optimizer])
ARGUMENTS = {
    "beta": "Of the momentum.",
    "dimension": "How many coordinates.",
    "kind": "How the directions are made, as of `IntrinsicSubspace`.",
    "rank": "Of the subspace: a number, or as a float a part of the shorter side.",
    "scale": "What the projected update is multiplied by.",
    "side": "Which side is compressed, as of `LowRank`.",
    "refresh": "How the basis is made, as of `LowRank`.",
    "stagger": "Whether refreshes are spread over steps.",
    "limit": "The most by which the norm that is limited grows in a step; None for no limit.",
    "chain": "How seeds follow from it: as of `RandomSubspace`.",
    "beta2_decay": "The power of the step count that is 1 less the decay.",
    "error_feedback": "Whether what is left out is added to the next gradient.",
}


UNCORRECTED = "Of Adam, beside the root of the uncorrected second moment."
LEAST = "The least root of a second moment."
ROOT = "The update is multiplied by its root, as in the authors' code."


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

    Fixed settings have one value for all parameters, because another module was made with it.
    """
    ways = [Way(modules, project, settings={"rank": rank}), Way(None, settings={"rank": None})]
    return routed(name, params, ways, _ending(lr, weight_decay), fixed=fixed, unfit=_unfit)


def corrected(
    make: Callable[..., Module], betas: tuple[float, float], eps: float, **settings: Any
) -> list[Spec]:
    """Returns a subspace of Adam, whose bias is corrected behind it.

    Both have betas, so that no scheduler finds and cycles those of one.
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
) -> Optimizer:
    """Returns an optimizer that runs another module on parameters that are not projected."""
    rules = default if project is None else project
    settings = {} if rank is None else {"rank": rank}
    others = Way(None if inside is outside else [outside])
    ways = [Way([inside], rules, "ndim>=2", settings), others]
    return routed(name, params, ways, _ending(lr, weight_decay), unfit=_unfit)


def _ending(lr: float, weight_decay: float | None) -> list[Spec]:
    decay: list[Spec] = [] if weight_decay is None else [{"weight_decay": weight_decay}]
    return [*decay, {"lr": lr}]


def _unfit(parameter: Tensor, settings: Mapping[str, Any]) -> str | None:
    """Says why a subspace of its rank would not make a parameter smaller; None if it would."""
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
