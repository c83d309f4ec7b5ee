"""The parameters that recipes are given, as groups of pairs of a name, or None, and a parameter."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from projcore.errors import ArgumentError, ArgumentTypeError

Params = (
    torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)
Pair = tuple[str | None, Tensor]
Group = dict[str, Any]
T = TypeVar("T")


def trainable(recipe: str, params: Params) -> list[Group]:
    """Returns groups of pairs, of the parameters that can be trained.

    Parameters of integers, as of a quantized model, are left out before anything else is asked of
    them. Frozen ones stay: they take no part until they require a gradient, as in torch.
    """
    groups = _as_groups(recipe, params)
    members = [parameter for group in groups for _, parameter in group["params"]]
    if all(map(is_frozen, members)):
        raise ArgumentError(
            f"{recipe} was given {len(members)} parameters, all of them frozen (requires_grad is "
            "False). It needs at least one to train. Call requires_grad_() on some first."
        )
    for group in groups:
        group["params"] = [
            pair
            for pair in group["params"]
            if pair[1].is_floating_point() or pair[1].is_complex() or not is_frozen(pair[1])
        ]
    return groups


def added(recipe: str, group: Mapping[str, Any]) -> Group:
    """Returns a group that is added later, of pairs."""
    if not isinstance(group, Mapping):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(group).__name__} to add. A group holds parameters and "
            "their settings. Pass {'params': [...], ...}."
        )
    return _of_pairs(recipe, group)


def as_torch(group: Group) -> Group:
    """Returns a group as torch takes it: of pairs if all have names, else of parameters."""
    if all(name is not None for name, _ in group["params"]):
        return group
    return {**group, "params": [parameter for _, parameter in group["params"]]}


def named_by(model: weakref.ref[torch.nn.Module], group: Any) -> list[Any]:
    """Returns a group that is added later, with the names that its parameters have in a model.

    Those of other parameters are None. What is no group of parameters without names is returned as
    it is.
    """
    params = group.get("params") if isinstance(group, dict) else None
    params = [params] if isinstance(params, Tensor) else params
    if not isinstance(params, Iterable):
        return [group]
    given, found = list(params), model()
    if not all(isinstance(each, Tensor) for each in given):
        return [{**group, "params": given}]
    names = {} if found is None else {each: name for name, each in found.named_parameters()}
    return [{**group, "params": [(names.get(each), each) for each in given]}]


def values_of(group: Mapping[str, Any], key: str, default: T) -> list[T]:
    """Returns the values of a key of a group that has one for each parameter.

    They are the default if it has none, or has those of other parameters: tools that take out or
    merge parameters do not know this key.
    """
    count = len(group["params"])
    values: list[T] = list(group.get(key, ()))
    return values if len(values) == count else [default] * count


def is_frozen(parameter: Tensor) -> bool:
    """Whether a parameter takes no part in a step until it requires a gradient, or has one."""
    return not parameter.requires_grad and parameter.grad is None


def _as_groups(recipe: str, params: Params) -> list[Group]:
    if isinstance(params, torch.nn.Module):
        params = params.named_parameters()
    if isinstance(params, (Tensor, str, Mapping)) or not isinstance(params, Iterable):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(params).__name__}. It takes a model, or an iterable of "
            "parameters, of pairs of name and parameter, or of groups. Pass one of these."
        )
    members: list[Any] = _as_list(recipe, params)
    groups = members if members and isinstance(members[0], dict) else [{"params": members}]
    groups = [_of_pairs(recipe, group) for group in groups]
    if not any(group["params"] for group in groups):
        raise ArgumentError(
            f"{recipe} was given no parameters. It needs at least one; a generator such as "
            "model.parameters() is empty once used. Pass the model, or its parameters afresh."
        )
    return groups


def _of_pairs(recipe: str, group: Mapping[str, Any]) -> Group:
    """Returns a group of pairs, without the names and notes that it has of its own."""
    if "params" not in group:
        raise ArgumentError(
            f"{recipe} was given a parameter group with the keys {sorted(group)}, but no 'params'. "
            "A group holds parameters and their settings. Pass {'params': [...], ...}."
        )
    members = group["params"]
    members = [members] if isinstance(members, Tensor) else _as_list(recipe, members)
    names = values_of({**group, "params": members}, "param_names", None)
    pairs: list[Pair] = []
    for name, member in zip(names, members, strict=True):
        pair: Any = member if isinstance(member, tuple) and len(member) == 2 else (name, member)
        if not isinstance(pair[1], Tensor):
            raise ArgumentTypeError(
                f"{recipe} was given a {type(pair[1]).__name__} among its parameters. A parameter "
                "is a tensor, or a pair of a name and one. Pass for example "
                "model.named_parameters()."
            )
        pairs.append(pair)
    own = {key: each for key, each in group.items() if key not in ("param_names", "param_notes")}
    return {**own, "params": pairs}


def _as_list(recipe: str, members: Iterable[Any]) -> list[Any]:
    if isinstance(members, (set, frozenset)):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(members).__name__} of parameters, whose order changes "
            "from run to run, and with it which state belongs to which. Pass a list."
        )
    return list(members)
