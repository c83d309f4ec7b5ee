"""Our recipes, by the kinds and settings of `oracles`.

What a recipe chooses otherwise than the authors on purpose, and by a switch of the component
beneath, is set back here (`AUTHORS`): so it is the recipe's own composition that is compared.
"""

from __future__ import annotations

import ast
from typing import Any

import problem
from oracles import Kind, settings_of
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, recipes

# Component, and the arguments that make it repeat the authors' code.
RANDOM = ("random_subspace", {"chain": "apollo", "seed": 1, "stagger": False})
AUTHORS: dict[Kind, tuple[str, dict[str, Any]]] = {
    "apollo": RANDOM,
    "apollo_mini": RANDOM,
    "soap": ("soap_rotation", {"skip_first": True}),
}


def build(kind: Kind, params: list[Parameter], **settings: Any) -> Optimizer:
    """Builds our optimizer of a kind, set to repeat its authors'.

    Args:
        kind: Which.
        params: In order.
        settings: Over the defaults that both sides share.
    """
    settings = settings_of(kind, **settings)
    if kind == "apollo_mini":
        settings.pop("rank")  # 1, by definition
    optimizer = getattr(recipes, "galore_adamw" if kind == "galore" else kind)(params, **settings)
    if kind not in AUTHORS:
        return optimizer
    groups = [
        {name: group[name] for name in ("params", "rank") if name in group}
        for group in optimizer.param_groups
    ]
    component, arguments = AUTHORS[kind]
    return Optimizer(groups, *with_arguments(str(optimizer), component, arguments).split("; "))


def with_arguments(expression: str, component: str, arguments: dict[str, Any]) -> str:
    """Returns an optimizer's expression with some arguments of a component set."""
    modules = ast.parse(expression).body
    calls = [
        node
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == component
    ]
    if not calls:
        raise ValueError(f"there is no {component} in {expression}")
    for call in calls:
        kept = [keyword for keyword in call.keywords if keyword.arg not in arguments]
        added = [ast.keyword(name, ast.Constant(value)) for name, value in arguments.items()]
        call.keywords = kept + added
    return "; ".join(ast.unparse(module) for module in modules)


def trajectory(
    kind: Kind, *, how: dict[str, Any] | None = None, **settings: Any
) -> list[list[Tensor]]:
    """Returns the parameters on the way of our optimizer; `oracles.trajectory` for ours.

    Args:
        kind: Which.
        how: Arguments of `problem.run`.
        settings: Of the optimizer.
    """
    return problem.run(lambda params: build(kind, params, **settings), **(how or {}))
