"""Optimizers that run other modules on parameters of other roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projcore import Optimizer, Rules, inspect_model, role_of
from projcore.errors import ArgumentError, ArgumentTypeError

Params = (
    torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)
Rule = str | Callable[[str | None, Tensor], bool]
Spec = Mapping[str, Any]
Group = dict[str, Any]

HIDDEN = "ndim>=2 role!=embedding role!=head role!=last role!=depthwise role!=other"


@dataclass(frozen=True)
class Way:
    """The modules that parameters of some roles go through.

    Attributes:
        rules: One of these must hold for a parameter, and none of a way before.
        modules: What they go through.
        shape: The rule of `Route` that stands for it, which groups that are added later follow.
        folding: Which of the modules has the setting ``folding``; None if none has.
    """

    rules: Sequence[Rule]
    modules: Sequence[Spec]
    shape: str = "*"
    folding: int | None = None


def routed(recipe: str, params: Params, ways: Sequence[Way], modules: Sequence[Spec]) -> Optimizer:
    """Returns an optimizer of the ways that parameters take, and of modules for all of them.

    A way that no parameter takes is left out; the first is what the recipe is for. Stacks of
    matrices are in groups of their own, which say so to the module that folds them.

    Raises:
        ArgumentError: If no parameter takes the first way.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """
    known = inspect_model(params) if isinstance(params, torch.nn.Module) else {}
    table = [(rule, number) for number, way in enumerate(ways) for rule in way.rules]
    rules = Rules([rule for rule, _ in table], recipe)
    found: dict[tuple[int, int, bool], Group] = {}
    for place, group in enumerate(_groups(recipe, params)):
        given: list[tuple[str | None, Tensor]] = group["params"]
        types = [known[p].types if p in known else None for _, p in given]
        pairs = [(known[p].name if name is None and p in known else name, p) for name, p in given]
        roles = [known[p].role if p in known else role_of(name, p) for name, p in pairs]
        names, tensors = [name for name, _ in pairs], [parameter.detach() for _, parameter in pairs]
        chosen = rules.choose(names, tensors, types, roles=roles)
        for pair, role, rule in zip(pairs, roles, chosen, strict=True):
            number = table[rule][1]
            stack = role == "stack" and ways[number].folding is not None
            found.setdefault((number, place, stack), {**group, "params": []})["params"].append(pair)
    taken = sorted({number for number, *_ in found})
    if 0 not in taken:
        raise ArgumentError(
            f"{recipe} was given no parameter that it is for. Its own steps are for those that "
            f"follow {', '.join(map(repr, ways[0].rules))}. Pass a model with such, or another "
            "rule as project."
        )
    several = sum(ways[number].folding is not None for number in taken) > 1  # share the name
    groups = []
    for number, place, stack in sorted(found):
        group = found[number, place, stack]
        route = taken.index(number)
        if any(name is None for name, _ in group["params"]):
            group["params"] = [parameter for _, parameter in group["params"]]
        if stack:
            position = f"0.{route}.{ways[number].folding}." if several else ""
            group = {f"{position}folding": "last2", **group}
        groups.append({"route": route, **group} if len(taken) > 1 else group)
    first = list(ways[taken[0]].modules)
    if len(taken) > 1:
        routes = {ways[number].shape: list(ways[number].modules) for number in taken}
        first = [{"route": {"routes": routes}}]
    return Optimizer(groups, [*first, *modules])


def _groups(recipe: str, params: Params) -> list[Group]:
    """Returns groups of pairs of a name, or None, and a parameter."""
    if isinstance(params, torch.nn.Module):
        params = params.named_parameters()
    if isinstance(params, (Tensor, str, Mapping)) or not isinstance(params, Iterable):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(params).__name__}. It takes a model, or parameters, "
            "with names or without, or groups of these. Pass one of them."
        )
    members: list[Any] = list(params)
    groups = members if members and isinstance(members[0], dict) else [{"params": members}]
    return [{**group, "params": _pairs(recipe, group)} for group in groups]


def _pairs(recipe: str, group: Mapping[str, Any]) -> list[tuple[str | None, Tensor]]:
    members = group.get("params", ())
    pairs: list[tuple[str | None, Any]] = [
        member if isinstance(member, tuple) and len(member) == 2 else (None, member)
        for member in ([members] if isinstance(members, Tensor) else members)
    ]
    for _, parameter in pairs:
        if not isinstance(parameter, Tensor):
            raise ArgumentTypeError(
                f"{recipe} was given a {type(parameter).__name__} among its parameters. A "
                "parameter is a tensor, or a pair of a name and one. Pass for example "
                "model.named_parameters()."
            )
    return pairs
