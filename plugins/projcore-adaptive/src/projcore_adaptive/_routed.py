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

# What a stack of matrices is, is a setting of these, or of the one module inside.
FOLDING = {"dion2", "muon", "racs", "rms_normalize", "soap_rotation", "split_fused"}
HIDDEN = "ndim>=2 role!=embedding role!=head role!=last role!=depthwise role!=other"


@dataclass(frozen=True)
class Way:
    """The modules that parameters of some roles go through.

    Attributes:
        rules: One of these must hold for a parameter, and none of a way before.
        modules: What they go through.
        shape: The rule of `Route` that stands for it, which groups that are added later follow.
    """

    rules: Sequence[Rule]
    modules: Sequence[Spec]
    shape: str = "*"

    @property
    def folding(self) -> list[int]:
        """Which of the modules have the setting ``folding``."""
        return [k for k, module in enumerate(self.modules) if FOLDING.issuperset(module)]


def routed(
    recipe: str,
    params: Params,
    ways: Sequence[Way],
    modules: Sequence[Spec],
    last: Sequence[Spec] = (),
) -> Optimizer:
    """Returns an optimizer of the ways that parameters take, and of modules for all of them.

    Those of `last` come behind these, for the first way alone.

    A way that no parameter takes is left out; the first is what the recipe is for. Stacks of
    matrices are in groups of their own, which say so to the modules that fold them.

    Raises:
        ArgumentError: If no parameter takes the first way.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """
    found = _assigned(recipe, params, ways)
    taken = sorted({number for number, *_ in found})
    if 0 not in taken:
        raise ArgumentError(
            f"{recipe} was given no parameter that it is for. Its own steps are for those that "
            f"follow {', '.join(map(repr, ways[0].rules))}. Pass a model with such, or another "
            "rule as project."
        )
    several = sum(len(ways[number].folding) for number in taken) > 1  # modules of one setting
    groups = []
    for number, place, stack in sorted(found):
        group = found[number, place, stack]
        route = taken.index(number)
        if any(name is None for name, _ in group["params"]):
            group["params"] = [parameter for _, parameter in group["params"]]
        if stack:
            start = f"0.{route}." if len(taken) > 1 else ""
            places = [f"{start}{k}." if several else "" for k in ways[number].folding]
            group = {**{f"{each}folding": "last2" for each in places}, **group}
        if len(taken) > 1 and last:
            group = {"0.route": route, f"{1 + len(modules)}.route": min(route, 1), **group}
        elif len(taken) > 1:
            group = {"route": route, **group}
        groups.append(group)
    if len(taken) == 1:
        return Optimizer(groups, [*ways[taken[0]].modules, *modules, *last])
    routes = {ways[number].shape: list(ways[number].modules) for number in taken}
    chain: list[Spec] = [{"route": {"routes": routes}}, *modules]
    if last:
        chain.append({"route": {"routes": {ways[taken[0]].shape: list(last), "*": None}}})
    return Optimizer(groups, chain)


def _assigned(
    recipe: str, params: Params, ways: Sequence[Way]
) -> dict[tuple[int, int, bool], Group]:
    """Returns groups by their way, the group that they come from, and whether they are stacks."""
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
            stack = role == "stack" and bool(ways[number].folding)
            found.setdefault((number, place, stack), {**group, "params": []})["params"].append(pair)
    return found


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
    pairs = [_pairs(recipe, group) for group in groups]
    notes = ("param_names", "param_notes")
    own = [{key: value for key, value in group.items() if key not in notes} for group in groups]
    return [{**group, "params": each} for group, each in zip(own, pairs, strict=True)]


def _pairs(recipe: str, group: Mapping[str, Any]) -> list[tuple[str | None, Tensor]]:
    if "params" not in group:
        raise ArgumentError(
            f"{recipe} was given a parameter group with the keys {sorted(group)}, but no 'params'. "
            "A group holds parameters and their settings. Pass {'params': [...], ...}."
        )
    members = group["params"]
    members = [members] if isinstance(members, Tensor) else list(members)
    names = group.get("param_names", [None] * len(members))
    pairs: list[tuple[str | None, Any]] = [
        member if isinstance(member, tuple) and len(member) == 2 else (name, member)
        for name, member in zip(names, members, strict=True)
    ]
    for _, parameter in pairs:
        if not isinstance(parameter, Tensor):
            raise ArgumentTypeError(
                f"{recipe} was given a {type(parameter).__name__} among its parameters. A "
                "parameter is a tensor, or a pair of a name and one. Pass for example "
                "model.named_parameters()."
            )
    return pairs
