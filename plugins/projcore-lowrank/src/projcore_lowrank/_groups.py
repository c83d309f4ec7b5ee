"""Which parameters a recipe projects: parameter groups, split in two by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Rules
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore_lowrank._matrices import matrix_shape

Params = (
    torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)
Rule = str | Callable[[str | None, Tensor], bool]
Project = Rule | Sequence[Rule] | Mapping[Rule, Mapping[str, Any]] | None

# A head is a module of that name, as in lm_head.weight; heads.0.query or multihead_attn are not.
OF_MODEL = "ndim>=2 type!=Embedding !*embed* !*head.*"
OF_NAMED = "ndim>=2 !*embed* !*head.*"
UNNAMED = "ndim>=2"


def split_groups(
    recipe: str,
    params: Params,
    project: Project,
    inside: Mapping[str, Any],
    outside: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], int]:
    """Returns parameter groups, first those that are projected, and how many these are.

    What is not projected has the settings of its rule and of its group, too, as a learning rate.

    Args:
        recipe: Who asks, for messages.
        params: A model, parameters, pairs of name and parameter, or groups of these.
        project: What to project: a rule, rules, or rules with the settings of what they match.
        inside: Settings of what is projected; those of a rule, and of a group given, override them.
        outside: Settings of what is not; nothing overrides them.

    Raises:
        ArgumentError: If nothing would be projected, or a rule matches nothing.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """
    given = _as_groups(recipe, params)
    table = _as_table(project, _default_rule(params, given))
    types = _types(params) if isinstance(params, torch.nn.Module) else None
    rules = [*table.values(), {}]
    every = [pair for group in given for pair in group["params"]]
    chosen = Rules([*table, "*"], recipe).choose(
        [name for name, _ in every],
        [parameter.detach() for _, parameter in every],
        None if types is None else [types[name] for name, _ in every],
    )
    _refuse_idle(recipe, table, chosen, every)
    projected: list[dict[str, Any]] = []
    passing: list[dict[str, Any]] = []
    places = iter(chosen)
    for group in given:
        own = {key: value for key, value in group.items() if key != "params"}
        found: list[list[Any]] = [[] for _ in rules]
        left: list[list[Any]] = [[] for _ in rules]
        for pair in group["params"]:
            place = next(places)
            if place < len(table) and _saves(pair[1], {**inside, **rules[place], **own}):
                found[place].append(pair)
            else:
                left[place if rules[place] else -1].append(pair)
        for rule, members, others in zip(rules, found, left, strict=True):
            if members:
                projected.append({"params": members, **inside, **rule, **own})
            if others:
                passing.append({"params": others, **rule, **own, **outside})
    if not projected:
        shapes = ", ".join(str(tuple(parameter.shape)) for _, parameter in every[:5])
        raise ArgumentError(
            f"{recipe} would project none of its {len(every)} parameters, of shapes {shapes}"
            f"{', ...' if len(every) > 5 else ''}. It projects matrices whose shorter side is "
            f"greater than the rank, by the rules {', '.join(map(repr, map(_text, table)))}. Lower "
            "the rank, or pass other rules as project."
        )
    return [_unnamed(group) for group in [*projected, *passing]], len(projected)


def _saves(parameter: Tensor, settings: Mapping[str, Any]) -> bool:
    """Whether a tensor is a matrix that a subspace of the rank in the settings makes smaller."""
    shape = matrix_shape(parameter.shape, "fold")
    if shape is None or ("rank" in settings and settings["rank"] is None):
        return False
    rank = settings.get("rank")
    return not isinstance(rank, int) or min(shape) > rank


def _as_groups(recipe: str, params: Params) -> list[dict[str, Any]]:
    """Returns groups of pairs of name (or None) and parameter."""
    if isinstance(params, torch.nn.Module):
        params = params.named_parameters()
    if isinstance(params, (Tensor, str, dict)) or not isinstance(params, Iterable):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(params).__name__}. It takes a model, or an iterable of "
            "parameters, of pairs of name and parameter, or of groups. Pass one of these."
        )
    members: list[Any] = list(params)
    groups = members if members and isinstance(members[0], dict) else [{"params": members}]
    groups = [{**group, "params": _as_pairs(recipe, group)} for group in groups]
    if not any(group["params"] for group in groups):
        raise ArgumentError(
            f"{recipe} was given no parameters. It needs at least one; a generator such as "
            "model.parameters() is empty once used. Pass the model, or its parameters afresh."
        )
    return groups


def _as_pairs(recipe: str, group: Mapping[str, Any]) -> list[tuple[str | None, Tensor]]:
    if "params" not in group:
        raise ArgumentError(
            f"{recipe} was given a parameter group with the keys {sorted(group)}, but no 'params'. "
            "A group holds parameters and their settings. Pass {'params': [...], ...}."
        )
    members = group["params"]
    pairs: list[tuple[str | None, Tensor]] = []
    for member in [members] if isinstance(members, Tensor) else members:
        pair: Any = member if isinstance(member, tuple) and len(member) == 2 else (None, member)
        if not isinstance(pair[1], Tensor):
            raise ArgumentTypeError(
                f"{recipe} was given a {type(pair[1]).__name__} among its parameters. A parameter "
                "is a tensor, or a pair of a name and one. Pass for example "
                "model.named_parameters()."
            )
        pairs.append(pair)
    return pairs


def _default_rule(params: Params, groups: Sequence[Mapping[str, Any]]) -> str:
    if isinstance(params, torch.nn.Module):
        return OF_MODEL
    named = all(name is not None for group in groups for name, _ in group["params"])
    return OF_NAMED if named else UNNAMED


def _as_table(project: Project, default: str) -> dict[Rule, Mapping[str, Any]]:
    if project is None:
        return {default: {}}
    if isinstance(project, Mapping):
        return dict(project)
    rules = [project] if isinstance(project, str) or callable(project) else project
    return {rule: {} for rule in rules}


def _refuse_idle(
    recipe: str, table: Mapping[Rule, Any], chosen: Sequence[int], every: Sequence[Any]
) -> None:
    for place, rule in enumerate(table):
        if place not in chosen:
            names = ", ".join(name or f"{tuple(parameter.shape)}" for name, parameter in every[:8])
            raise ArgumentError(
                f"The rule {_text(rule)!r} of {recipe} matches no parameter that rules before it "
                f"leave. There are {names}{', ...' if len(every) > 8 else ''}. Correct or remove "
                "it."
            )


def _text(rule: Rule) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))


def _types(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns the names of the classes of each parameter's owner."""
    types = {}
    for name, _ in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        types[name] = tuple(cls.__name__ for cls in type(owner).__mro__)
    return types


def _unnamed(group: dict[str, Any]) -> dict[str, Any]:
    """Returns a group as torch takes it: of pairs if all have names, else of parameters."""
    if all(name is not None for name, _ in group["params"]):
        return group
    return {**group, "params": [parameter for _, parameter in group["params"]]}
