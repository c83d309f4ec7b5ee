"""What recipes share: the descriptions of arguments, and parameters that are split by rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from projcore import Optimizer
from projcore_lowrank._groups import LINEAR, Params, Project, Split

Spec = Mapping[str, Any]
Recipe = Callable[..., Optimizer]

ARGUMENTS = {
    "params": "A model, parameters, or groups.",
    "lr": "Learning rate.",
    "betas": "Of Adam.",
    "eps": "Of Adam.",
    "weight_decay": "Decoupled.",
    "momentum": "Of the momentum.",
    "rank": "Of the subspace: a number, or as a float a part of the shorter side.",
    "period": "Steps between refreshes.",
    "scale": "What the projected update is multiplied by.",
    "side": "Which side is compressed, as of `LowRank`.",
    "refresh": "How the basis is made, as of `LowRank`.",
    "stagger": "Whether refreshes are spread over steps.",
    "limit": "The most by which the norm that is limited grows in a step; None for no limit.",
    "seed": "Of random numbers.",
    "chain": "How seeds follow from it: as of `RandomSubspace`.",
    "beta2_decay": "The power of the step count that is 1 less the decay.",
    "error_feedback": "Whether what is left out is added to the next gradient.",
    "project": "What is projected.",
}
RAISES = "    ArgumentError: If nothing would be projected, or a setting is out of range."
EXAMPLE = """\
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    >>> optimizer = {name}({arguments})"""


def recipe(**example: Any) -> Callable[[Recipe], Recipe]:
    """Completes a recipe's docstring: arguments from the table above, errors, and an example.

    What the recipe says itself, in a section ``Args``, goes before the table.

    Args:
        example: The arguments of the example, beside the model.
    """

    def complete(function: Recipe) -> Recipe:
        text, *sections = re.split(r"\n\n(?=\w+:)", inspect.cleandoc(function.__doc__ or ""))
        own = next((each for each in sections if each.startswith("Args:")), "Args:")
        found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", own, flags=re.MULTILINE)
        known = {**ARGUMENTS, **dict(found)}
        names = inspect.signature(function).parameters
        arguments = [f"    {name}: {known[name]}" for name in names]
        given = ", ".join(["model", *(f"{name}={value!r}" for name, value in example.items())])
        shown = EXAMPLE.format(name=function.__name__, arguments=given)
        function.__doc__ = "\n\n".join(
            [
                text,
                "\n".join(["Args:", *arguments]),
                f"Raises:\n{RAISES}",
                *(each for each in sections if each.startswith("Cost:")),
                f"Example:\n{shown}",
                *(each for each in sections if each.startswith("References:")),
            ]
        )
        return function

    return complete


def optimizer(
    name: str,
    params: Params,
    project: Project,
    rank: float | None,
    modules: Sequence[Spec],
    lr: float,
    weight_decay: float | None = None,
    fixed: Spec | None = None,
) -> Optimizer:
    """Returns the optimizer of these modules; what is not projected is in groups of no rank.

    What is fixed has one value for all parameters, because another module was made with it. Where
    both have it as a setting, its names in groups are qualified by position.
    """
    split = Split(name, params, project, {"rank": rank}, {"rank": None}, fixed=fixed)
    return _finished(split, modules, lr, weight_decay)


def routed(
    name: str,
    params: Params,
    project: Project,
    inside: Spec,
    outside: Spec,
    lr: float,
    weight_decay: float,
    rank: float | None = None,
    default: str = LINEAR,
) -> Optimizer:
    """Returns an optimizer that runs another module on what is not projected."""
    settings = {} if rank is None else {"rank": rank}
    other = inside is not outside
    split = Split(name, params, project, settings, {"route": 1} if other else {}, default)
    split.complete = not other or split.count < len(split.groups)
    if other and split.complete:
        inside = {"route": {"routes": {"ndim>=2": [inside], "*": [outside]}}}
    return _finished(split, [inside], lr, weight_decay)


def _finished(
    split: Split, modules: Sequence[Spec], lr: float, weight_decay: float | None
) -> Optimizer:
    decay = [] if weight_decay is None else [{"weight_decay": weight_decay}]
    made = Optimizer(split.groups, [*modules, *decay, {"lr": lr}])
    made.regroup = split.late
    return made
