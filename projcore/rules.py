"""Rules that select parameters by name, shape, dtype or type, written as strings."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from projcore.errors import ArgumentError, ArgumentTypeError, suggest
from projcore.roles import ROLES, inspect_model

Predicate = Callable[["str | None", Tensor], bool]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FIELDS = ("ndim", "numel", "group", "shape", "dtype", "type", "role")
_COMPARISON = re.compile(r"([^=!<>]*)(==|!=|>=|<=|>|<)(.*)")


@dataclass(frozen=True)
class Candidate:
    """The facts about a parameter that a rule may use.

    Attributes:
        name: The parameter's name; None if it has none, or if the tensor is made from several.
        tensor: A tensor of its shape and dtype, without storage.
        types: Names of the classes of the model's module that owns it; None if unknown.
        group: The number of its parameter group; None if it has none, or is made from several.
        role: Its role, one of those of `inspect_model`; None if unknown.
    """

    name: str | None
    tensor: Tensor
    types: tuple[str, ...] | None = None
    group: int | None = None
    role: str | None = None

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.tensor.shape)) or "scalar"
        return f"{self.name or 'unnamed'} ({shape})"


class Rule:
    """A condition on a parameter: a string of tests that must all hold, or a function.

    =============================  ============================================================
    ``*.weight``                   its name matches, with ``*``, ``?`` and ``[...]`` as in a shell
    ``!*.norm.*``                  its name does not match
    ``ndim==2``, ``numel>=1000``   a comparison: ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``
    ``shape==768x*``               its shape matches, one pattern for each dimension
    ``dtype==bfloat16``            its dtype
    ``group==0``                   the number of its parameter group; not in `param_groups`
    ``type==Linear``               the class of an owner, or a base; in `param_groups` only
    ``role!=embedding``            its role, of `inspect_model`; in `param_groups` and recipes only
    =============================  ============================================================

    Args:
        condition: Such tests, separated by spaces, or a function of the name and a tensor of the
            parameter's shape and dtype (without values) that returns a bool.

    Raises:
        ArgumentError: If a test is invalid.
        ArgumentTypeError: If it is neither a string nor a function.

    Example:
        >>> rule = Rule("*.weight ndim==2")
        >>> rule.matches(Candidate("0.weight", torch.empty(3, 2)))
        True
        >>> rule.matches(Candidate("0.bias", torch.empty(3)))
        False
    """

    def __init__(self, condition: str | Predicate) -> None:
        self._predicate: Predicate | None = None
        self._words: list[_Word] = []
        if isinstance(condition, str):
            self.text = condition
            self._words = [_read(word, condition) for word in condition.split()]
            if not self._words:
                raise ArgumentError(
                    "A rule is empty. It must select parameters. Write for example "
                    "'*.weight ndim==2', or '*' for all."
                )
        elif callable(condition):
            self.text = getattr(condition, "__name__", repr(condition))
            self._predicate = condition
        else:
            raise ArgumentTypeError(
                f"{condition!r} was given as a rule. A rule is a string, such as "
                "'*.weight ndim==2', or a function of a name and a tensor."
            )

    def matches(self, candidate: Candidate) -> bool:
        """Whether it holds.

        Raises:
            ArgumentError: If it tests an unknown fact, such as the name of a merged tensor.
        """
        if self._predicate is not None:
            return bool(self._predicate(candidate.name, candidate.tensor))
        return all(word.holds(candidate, self.text) for word in self._words)

    @property
    def catches_all(self) -> bool:
        """Whether it is ``"*"``, which matches all remaining parameters, or none."""
        return self.text.split() == ["*"]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Word:
    """One test of a rule: a field, a comparison, and a value."""

    field: str
    compare: str
    value: str

    def holds(self, candidate: Candidate, rule: str) -> bool:
        if self.field == "name":
            return self._name_matches(candidate, rule) == (self.compare == "==")
        if self.field in ("ndim", "numel"):
            number = getattr(candidate.tensor, self.field)
            number = number() if callable(number) else number
            return _OPERATORS[self.compare](number, int(self.value))
        if self.field == "group":
            if candidate.group is None:
                raise ArgumentError(
                    f"The rule {rule!r} asks for the parameter group of a tensor that has none, or "
                    "is made from several. Put the rule outside a projection that merges."
                )
            return _OPERATORS[self.compare](candidate.group, int(self.value))
        if self.field == "dtype":
            found = str(candidate.tensor.dtype).removeprefix("torch.") == self.value
        elif self.field == "shape":
            patterns, shape = self.value.split("x"), candidate.tensor.shape
            found = len(patterns) == len(shape) and all(
                fnmatchcase(str(size), each) for size, each in zip(shape, patterns, strict=True)
            )
        elif self.field == "role":
            if candidate.role is None:
                raise ArgumentError(
                    f"The rule {rule!r} asks for the role of a parameter, which only the model "
                    "knows. Use it in projcore.param_groups(model, ...), and then group==0."
                )
            found = candidate.role == self.value
        else:
            if candidate.types is None:
                raise ArgumentError(
                    f"The rule {rule!r} asks for the type of a parameter's owner, which only the "
                    "model knows. Use it in projcore.param_groups(model, ...), and then group==0."
                )
            found = self.value in candidate.types
        return found == (self.compare == "==")

    def _name_matches(self, candidate: Candidate, rule: str) -> bool:
        if self.value == "*":
            return True
        if candidate.name is None:
            raise ArgumentError(
                f"The rule {rule!r} asks for a name, but a tensor of shape "
                f"{tuple(candidate.tensor.shape)} has none: the optimizer was given parameters "
                "without names, or the tensor is made from several. Pass model.named_parameters(), "
                "and put the rule outside a projection that merges."
            )
        return fnmatchcase(candidate.name, self.value)


def _read(word: str, rule: str) -> _Word:
    match = _COMPARISON.fullmatch(word)
    if match is None:
        return _Word("name", "!=", word[1:]) if word.startswith("!") else _Word("name", "==", word)
    field, compare, value = match.groups()
    if field not in _FIELDS:
        raise ArgumentError(
            f"The rule {rule!r} compares {field!r}.{suggest(field, _FIELDS)} It can compare "
            f"{', '.join(_FIELDS)}."
        )
    if field in ("ndim", "numel", "group") and not value.isdecimal():
        raise ArgumentError(
            f"The rule {rule!r} compares {field} with {value!r}. It must be a whole number. "
            f"Write for example {field}{compare}2, without spaces."
        )
    if field == "dtype" and not isinstance(getattr(torch, value, None), torch.dtype):
        raise ArgumentError(
            f"The rule {rule!r} compares dtype with {value!r}, which is no dtype of torch. Write "
            "for example dtype==float32."
        )
    if field == "role" and value not in ROLES:
        raise ArgumentError(
            f"The rule {rule!r} compares role with {value!r}.{suggest(value, ROLES)} Roles are "
            f"{', '.join(ROLES)}."
        )
    if field in ("shape", "dtype", "type", "role") and (compare not in ("==", "!=") or not value):
        raise ArgumentError(f"The rule {rule!r} has {word!r}. A {field} is compared with == or !=.")
    return _Word(field, compare, value)


class Rules:
    """Rules in order: each parameter follows the first that matches it.

    Args:
        conditions: The condition of each `Rule`.
        owner: The owner of these rules, for messages.
    """

    def __init__(self, conditions: Iterable[str | Predicate], owner: str) -> None:
        self.rules = [Rule(condition) for condition in conditions]
        self.owner = owner
        if not self.rules:
            raise ArgumentError(
                f"{owner} was given no rules. It needs one or more. Write for example '*', for all."
            )

    def choose(
        self,
        names: Sequence[str | None],
        tensors: Sequence[Tensor],
        types: Sequence[tuple[str, ...] | None] | None = None,
        groups: Sequence[Hashable] | None = None,
        complete: bool = False,
        frozen: Sequence[tuple[str | None, Tensor, int]] = (),
        roles: Sequence[str] | None = None,
        given: Sequence[int | None] | None = None,
        followed: Collection[int] = (),
    ) -> list[int]:
        """Returns the index of the first matching rule, for each tensor.

        Args:
            names: The name of each, or None.
            tensors: Their shapes and dtypes count.
            types: Names of the classes of each one's owner, if known.
            groups: The parameter group of each, as `Objective.groups` has it.
            complete: Whether these are all parameters, so that a rule that none of them follows is
                an error, except for ``"*"``.
            roles: The role of each, if known.
            given: For each, the index of a rule that takes precedence, or None.
            frozen: Frozen parameters, as `Space.frozen` has them. They need no rule, but a rule
                that one of them follows is no error.
            followed: Indices of more rules that are no error, because their index was given for a
                parameter that is frozen.

        Raises:
            ArgumentError: If a parameter matches no rule, or a rule tests an unknown fact.
        """
        candidates = [
            Candidate(
                names[i],
                torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"),
                None if types is None else types[i],
                None if groups is None else _number(groups[i]),
                None if roles is None else roles[i],
            )
            for i, tensor in enumerate(tensors)
        ]
        chosen = []
        for candidate, index in zip(candidates, given or [None] * len(candidates), strict=True):
            if index is None:
                index = self._first(candidate)
            if index is None:
                raise ArgumentError(
                    f"{self.owner} has no rule for {candidate}; its rules are "
                    f"{', '.join(repr(str(rule)) for rule in self.rules)}. Each parameter needs "
                    "one. Add '*' as the last, for all others."
                )
            chosen.append(index)
        if complete:
            others = [Candidate(name, tensor, None, group) for name, tensor, group in frozen]
            used = set(chosen).union(followed, *(self._could_follow(other) for other in others))
            for i in sorted(set(range(len(self.rules))) - used):
                if not self.rules[i].catches_all:
                    self._refuse_idle(self.rules[i], candidates)
        return chosen

    def _first(self, candidate: Candidate) -> int | None:
        """The index of the first rule that matches, or None."""
        return next((i for i, rule in enumerate(self.rules) if rule.matches(candidate)), None)

    def _could_follow(self, candidate: Candidate) -> set[int]:
        """The index of the first rule that matches; all, if one tests an unknown fact."""
        try:
            index = self._first(candidate)
        except ArgumentError:
            return set(range(len(self.rules)))
        return set() if index is None else {index}

    def _refuse_idle(self, rule: Rule, candidates: Sequence[Candidate]) -> None:
        why = "matches none"
        if taken := [candidate for candidate in candidates if rule.matches(candidate)]:
            why = f"comes too late: earlier rules match all its parameters, such as {taken[0]}"
        more = ", ..." if len(candidates) > 8 else ""
        raise ArgumentError(
            f"The rule {str(rule)!r} of {self.owner} {why}. There are "
            f"{', '.join(map(str, candidates[:8])) or 'no tensors'}{more}. Correct, move or remove "
            "it."
        )


def _number(group: Hashable) -> int | None:
    """Returns the number of a group; None for several, which are a tuple."""
    while isinstance(group, tuple) and len(group) == 1:
        (group,) = group
    return group if isinstance(group, int) else None


NAMED: dict[str, dict[str | Predicate, Mapping[str, Any]]] = {
    "no_decay": {"ndim>=2": {}, "*": {"weight_decay": 0.0}}
}


def param_groups(
    model: torch.nn.Module, rules: Mapping[str | Predicate, Mapping[str, Any]] | str
) -> list[dict[str, Any]]:
    """Makes torch's parameter groups of a model: one for each rule, with its settings.

    Each parameter goes to the first rule that matches it (see `Rule`); a shared parameter counts
    once, under its first name, and has the types of all its owners. The groups hold names, so that
    rules of the optimizer's modules may use them, too. A last rule ``"*"`` may match nothing, and
    then makes no group.

    Args:
        model: The model.
        rules: The settings of each rule's group; or ``"no_decay"``, the usual groups: a
            ``weight_decay`` of 0 for biases, gains and whatever else has fewer than two dimensions.

    Raises:
        ArgumentError: If a parameter matches no rule, a rule no parameter, or the name is unknown.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        >>> [group.get("weight_decay") for group in param_groups(model, "no_decay")]
        [None, 0.0]
        >>> rules = {"type==Linear ndim==2": {"weight_decay": 0.1}, "*": {"weight_decay": 0.0}}
        >>> groups = param_groups(model, rules)
        >>> [[name for name, _ in group["params"]] for group in groups]
        [['0.weight'], ['0.bias', '1.weight', '1.bias']]
    """
    if isinstance(rules, str):
        if rules not in NAMED:
            raise ArgumentError(
                f"param_groups(model, {rules!r}) is unknown.{suggest(rules, NAMED)} It takes rules "
                f"with their settings, or one of {', '.join(map(repr, NAMED))}."
            )
        rules = NAMED[rules]
    known = inspect_model(model)
    named = [(each.name, parameter) for parameter, each in known.items()]
    chosen = Rules(rules, "param_groups").choose(
        [name for name, _ in named],
        [parameter.detach() for _, parameter in named],
        [each.types for each in known.values()],
        complete=True,
        roles=[each.role for each in known.values()],
    )
    return [
        {
            "params": [each for each, k in zip(named, chosen, strict=True) if k == index],
            **settings,
        }
        for index, settings in enumerate(rules.values())
        if index in chosen
    ]
