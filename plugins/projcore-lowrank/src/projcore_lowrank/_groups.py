"""Which parameters a recipe projects: parameter groups, split in two by rules."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore import Rules, inspect_model, role_of
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore_lowrank._matrices import Folding, matrix_shape

Params = (
    torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
)
Rule = str | Callable[[str | None, Tensor], bool]
Project = Rule | Sequence[Rule] | Mapping[Rule, Mapping[str, Any]] | None
Pair = tuple[str | None, Tensor]
Group = dict[str, Any]

LINEAR = "ndim>=2 role!=embedding role!=head role!=depthwise role!=other"
HIDDEN = f"{LINEAR} role!=last"
ROLES = {
    "vector": "no matrix",
    "embedding": "embedding",
    "head": "output layer",
    "last": "last linear layer",
    "depthwise": "depthwise convolution",
}
log = logging.getLogger("projcore")


class Split:
    """Tells what a recipe projects of parameters, and of groups that are added later.

    Args:
        recipe: Its name, for messages.
        params: A model, parameters, pairs of name and parameter, or groups of these. Frozen ones
            are left out.
        project: What to project: a rule, rules, or rules with the settings of what they match.
        inside: Settings of what is projected; those of a rule, and of a group given, override them.
        outside: Settings of what is not; nothing overrides them.
        default: The rule if `project` is None.
        fixed: Settings that have one value for all parameters.

    Attributes:
        groups: Parameter groups, first those that are projected.
        count: How many these are.
        complete: Whether what is not projected has modules to go to; otherwise a group that is
            added later is refused if it has any.

    Raises:
        ArgumentError: If nothing would be projected, or a rule matches nothing.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """

    def __init__(
        self,
        recipe: str,
        params: Params,
        project: Project,
        inside: Mapping[str, Any],
        outside: Mapping[str, Any],
        default: str = LINEAR,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe
        self.table = _as_table(project, default)
        self.by_default = project is None
        self.inside = inside
        self.outside = outside
        self.fixed = fixed or {}
        self.complete = True
        # Weak, since an optimizer keeps no model alive.
        self._model = weakref.ref(params) if isinstance(params, torch.nn.Module) else None
        given = trainable(recipe, params)
        projected, passing = self._split(given, first=True)
        self.groups = [*projected, *passing]
        self.count = len(projected)
        if not projected:
            self._refuse_none(passing)
        self._tell(projected, passing)
        self.groups = [unnamed(group) for group in self.groups]

    def late(self, group: Mapping[str, Any]) -> list[Group]:
        """Returns the groups that a group which is added later is split into.

        Parameters of the model have their names in it; others have none, if it is a model that the
        recipe was given, so that a tool need not know names.
        """
        if not isinstance(group, Mapping):
            raise ArgumentTypeError(
                f"{self.recipe} was given a {type(group).__name__} to add. A group holds "
                "parameters and their settings. Pass {'params': [...], ...}."
            )
        own = {key: value for key, value in group.items() if key != "param_names"}
        given = [{**own, "params": _as_pairs(self.recipe, group)}]
        projected, passing = self._split(given, first=False)
        if passing and not self.complete:
            name, parameter = passing[0]["params"][0]
            raise ArgumentError(
                f"{self.recipe} was given {name or 'a parameter'} of shape "
                f"{tuple(parameter.shape)} to add, which it does not project. It was built with "
                "parameters that are all projected, so there is no other module for it. Pass one "
                "such parameter when it is built, too."
            )
        groups = [*projected, *passing]
        return groups if self._model is not None else [unnamed(each) for each in groups]

    def _split(self, given: list[Group], first: bool) -> tuple[list[Group], list[Group]]:
        """Returns groups of what is projected, and of what is not.

        What is not projected has the settings of its rule and of its group, too, as a learning
        rate. Stacks of matrices are in groups of their own, which say how they are folded.
        """
        every, types, roles = self._inspected(given)
        rules = [*self.table.values(), {}]
        chosen = Rules([*self.table, "*"], self.recipe).choose(
            [name for name, _ in every],
            [parameter.detach() for _, parameter in every],
            types,
            roles=roles,
        )
        if first:
            self._refuse_idle(chosen, every)
        parts: tuple[list[Group], list[Group]] = [], []
        places = iter(range(len(every)))
        for group in given:
            own = {key: value for key, value in group.items() if key != "params"}
            found: dict[tuple[bool, int, bool], Group] = {}
            for _, i in zip(group["params"], places, strict=False):
                k, (_, parameter) = chosen[i], every[i]
                folding = {"folding": "last2"} if roles[i] == "stack" else {}
                settings = {**self.inside, **folding, **rules[k], **own}
                if k < len(self.table):
                    note, left = self._fit(parameter, settings)
                else:
                    note, left = self._reason(roles[i], types[i]), True
                kind = (left, k, settings.get("folding") == "last2")
                if left:
                    settings = {**rules[k], **own, **self.outside}
                    kind = (left, k if rules[k] else len(self.table), False)
                part = found.setdefault(kind, {**settings, "params": [], "param_notes": []})
                part["params"].append(every[i])
                part["param_notes"].append(note)
            for kind in sorted(found):
                self._refuse_other_values(found[kind])
                parts[kind[0]].append(found[kind])
        return parts

    def _inspected(
        self, given: list[Group]
    ) -> tuple[list[Pair], list[tuple[str, ...] | None], list[str]]:
        """Returns all pairs of name and parameter, the types of each one's owners, and roles."""
        model = None if self._model is None else self._model()
        known = {} if model is None else inspect_model(model)
        pairs: list[Pair] = []
        types: list[tuple[str, ...] | None] = []
        roles: list[str] = []
        for name, parameter in (pair for group in given for pair in group["params"]):
            found = known.get(parameter)
            name = found.name if found and name is None else name
            if is_lazy(parameter):
                raise ArgumentError(
                    f"{self.recipe} was given {name or 'a parameter'}, whose shape is not known "
                    "yet. It projects by shape. Run the model once, which gives lazy layers theirs."
                )
            pairs.append((name, parameter))
            types.append(None if found is None else found.types)
            roles.append(found.role if found else role_of(name, parameter))
        return pairs, types, roles

    def _fit(self, parameter: Tensor, settings: Mapping[str, Any]) -> tuple[str, bool]:
        """Returns a note on a tensor that a rule matches, and whether it is left out after all.

        It is if it is no matrix, or one that a subspace of the rank would not make smaller, or if
        its settings say so.
        """
        folding: Folding = "last2" if settings.get("folding") == "last2" else "fold"
        shape = matrix_shape(parameter.shape, folding)
        if shape is None:
            return ROLES["vector"], True
        for key, value in {"rank": None, **self.outside}.items():
            if key in settings and settings[key] == value:
                return f"{key}={value}", True
        rank = settings.get("rank")
        if isinstance(rank, int) and min(shape[-2:]) <= rank:
            return f"a side within rank {rank}", True
        return f"{torch.Size(shape[:-2]).numel()} matrices" if len(shape) > 2 else "", False

    def _reason(self, role: str, types: tuple[str, ...] | None) -> str:
        """Why the rules leave a parameter out."""
        if not self.by_default and role != "vector":
            return "left out by project"
        if role == "other":
            return f"no linear map of {types[0]}" if types else "no linear map"
        return ROLES[role]

    def _refuse_idle(self, chosen: Sequence[int], every: Sequence[Pair]) -> None:
        for place, rule in enumerate(self.table):
            if place not in chosen:
                names = ", ".join(name or f"{tuple(p.shape)}" for name, p in every[:8])
                raise ArgumentError(
                    f"The rule {_text(rule)!r} of {self.recipe} matches no parameter that rules "
                    f"before it leave. There are {names}{', ...' if len(every) > 8 else ''}. "
                    "Correct or remove it."
                )

    def _refuse_none(self, passing: Sequence[Group]) -> None:
        every = [
            f"{tuple(parameter.shape)} ({note})"
            for group in passing
            for (_, parameter), note in zip(group["params"], group["param_notes"], strict=True)
        ]
        raise ArgumentError(
            f"{self.recipe} would project none of its {len(every)} parameters, of shapes "
            f"{', '.join(every[:5])}{', ...' if len(every) > 5 else ''}. It projects matrices "
            "whose shorter side is greater than the rank, by the rules "
            f"{', '.join(map(repr, map(_text, self.table)))}. Lower the rank, or pass other rules "
            "as project."
        )

    def _refuse_other_values(self, group: Group) -> None:
        for name, value in self.fixed.items():
            for key in [key for key in group if key.rpartition(".")[2] == name]:
                given = group.pop(key)
                if given != value:
                    raise ArgumentError(
                        f"{self.recipe}({name}={value!r}) was given {key}={given!r} for a group or "
                        "a rule. It is one for all parameters. Pass it to "
                        f"{self.recipe} itself."
                    )

    def _tell(self, projected: list[Group], passing: list[Group]) -> None:
        """Logs what is left out, and why, and what is taken for a stack."""
        count = sum(len(group["params"]) for group in projected)
        total = count + sum(len(group["params"]) for group in passing)
        notes: dict[str, list[str]] = {}
        for group in [*projected, *passing]:
            for (name, parameter), note in zip(group["params"], group["param_notes"], strict=True):
                if note:
                    notes.setdefault(note, []).append(name or f"{tuple(parameter.shape)}")
        told = [
            f"{note}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" * (len(names) > 3))
            for note, names in notes.items()
        ]
        frozen = [
            p for group in [*projected, *passing] for _, p in group["params"] if _is_frozen(p)
        ]
        if frozen:
            told.append(f"frozen, so without state until they are not: {len(frozen)}")
        log.info("%s projects %d of %d parameters. %s", self.recipe, count, total, "; ".join(told))


def trainable(recipe: str, params: Params) -> list[Group]:
    """Returns groups of pairs of name (or None) and parameter, of those that can be trained.

    Parameters of integers, as of a quantized model, are left out before anything else is asked of
    them. Frozen ones stay: they take no part until they require a gradient, as in torch.
    """
    groups = _as_groups(recipe, params)
    count = sum(len(group["params"]) for group in groups)
    if count and not any(map(_is_trained, groups)):
        raise ArgumentError(
            f"{recipe} was given {count} parameters, all of them frozen (requires_grad is False). "
            "It needs at least one to train. Call requires_grad_() on some first."
        )
    for group in groups:
        group["params"] = [
            pair
            for pair in group["params"]
            if pair[1].is_floating_point() or pair[1].is_complex() or not _is_frozen(pair[1])
        ]
    return groups


def _is_trained(group: Group) -> bool:
    """Whether a group has a parameter that is not frozen."""
    return not all(_is_frozen(parameter) for _, parameter in group["params"])


def _is_frozen(parameter: Tensor) -> bool:
    return not parameter.requires_grad and parameter.grad is None


def _as_groups(recipe: str, params: Params) -> list[Group]:
    if isinstance(params, torch.nn.Module):
        params = params.named_parameters()
    if isinstance(params, (Tensor, str, dict)) or not isinstance(params, Iterable):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(params).__name__}. It takes a model, or an iterable of "
            "parameters, of pairs of name and parameter, or of groups. Pass one of these."
        )
    members: list[Any] = _as_list(recipe, params)
    groups = members if members and isinstance(members[0], dict) else [{"params": members}]
    groups = [{**group, "params": _as_pairs(recipe, group)} for group in groups]
    for group in groups:
        for key in ("param_names", "param_notes"):
            group.pop(key, None)
    if not any(group["params"] for group in groups):
        raise ArgumentError(
            f"{recipe} was given no parameters. It needs at least one; a generator such as "
            "model.parameters() is empty once used. Pass the model, or its parameters afresh."
        )
    return groups


def _as_pairs(recipe: str, group: Mapping[str, Any]) -> list[Pair]:
    if "params" not in group:
        raise ArgumentError(
            f"{recipe} was given a parameter group with the keys {sorted(group)}, but no 'params'. "
            "A group holds parameters and their settings. Pass {'params': [...], ...}."
        )
    members = group["params"]
    members = [members] if isinstance(members, Tensor) else _as_list(recipe, members)
    names = group.get("param_names", [None] * len(members))
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
    return pairs


def _as_list(recipe: str, members: Iterable[Any]) -> list[Any]:
    if isinstance(members, (set, frozenset)):
        raise ArgumentTypeError(
            f"{recipe} was given a {type(members).__name__} of parameters, whose order changes "
            "from run to run, and with it which state belongs to which. Pass a list."
        )
    return list(members)


def _as_table(project: Project, default: str) -> dict[Rule, Mapping[str, Any]]:
    if project is None:
        return {default: {}}
    if isinstance(project, Mapping):
        return dict(project)
    rules = [project] if isinstance(project, str) or callable(project) else project
    return {rule: {} for rule in rules}


def _text(rule: Rule) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))


def unnamed(group: Group) -> Group:
    """Returns a group as torch takes it: of pairs if all have names, else of parameters."""
    if all(name is not None for name, _ in group["params"]):
        return group
    return {**group, "params": [parameter for _, parameter in group["params"]]}
