"""Which parameters go through which modules of a recipe: parameter groups, split by rules."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore._pairs import Group, Pair, Params, added, as_torch, is_frozen, trainable
from projcore.core.chain import Chain
from projcore.engine.names import SettingNames
from projcore.errors import ArgumentError
from projcore.roles import Known, facts_of, inspect_model
from projcore.rules import Rules

if TYPE_CHECKING:
    from projcore.recipe import Way

Unfit = Callable[[Tensor, Mapping[str, Any]], str | None]

NOTES = {
    "vector": "no matrix",
    "embedding": "embedding",
    "head": "output layer",
    "last": "last linear layer",
    "depthwise": "depthwise convolution",
}
LAYOUT = {"folding": "last2", "transposed": True}  # settings of modules, for groups that need them
log = logging.getLogger("projcore")


class Member(NamedTuple):
    """A parameter and where it goes.

    Attributes:
        way: The number of its way.
        place: The group that it comes from.
        rule: The rule that it follows; the last one, if it is left out and its rule has no settings
            of its own, so that it is in one group with others.
        pair: Its name, or None, and itself.
        settings: Those of its group.
        layout: Those of `LAYOUT` that its group needs, and has no value of.
        note: Why it is left out, or nothing.
    """

    way: int
    place: int
    rule: int
    pair: Pair
    settings: dict[str, Any]
    layout: tuple[str, ...]
    note: str


class Split:
    """Tells which way each parameter goes, also of groups that are added later.

    Args:
        recipe: Its name, for messages.
        params: As the recipe was given them.
        ways: Where parameters go.
        fixed: Settings that have one value for all parameters.
        unfit: Why a parameter is left out that a rule of the first way picks, or None.

    Attributes:
        routes: The route of each way that some parameter takes and that has modules.

    Raises:
        ArgumentError: If no parameter takes the first way, or one of its rules matches nothing.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """

    def __init__(
        self,
        recipe: str,
        params: Params,
        ways: Sequence[Way],
        fixed: Mapping[str, Any],
        unfit: Unfit,
    ) -> None:
        self.recipe = recipe
        self.ways = ways
        self.fixed = fixed
        self.unfit = unfit
        self.table = [
            (rule, number, settings)
            for number, way in enumerate(ways)
            for rule, settings in way.table.items()
        ]
        self.rules = Rules([rule for rule, *_ in self.table], recipe)
        # Weak, since an optimizer keeps no model alive.
        self._model = weakref.ref(params) if isinstance(params, torch.nn.Module) else None
        self._members = self._assigned(trainable(recipe, params), first=True)
        taken = sorted({each.way for each in self._members if ways[each.way].modules is not None})
        if 0 not in (each.way for each in self._members):
            self._refuse_none()
        self.routes = {number: route for route, number in enumerate(taken)}
        self._routing: list[str] = []
        self._keys: dict[int, dict[str, list[str]]] = {}

    def groups(self, chain: Chain, routes: Sequence[str]) -> list[Group]:
        """Returns the parameter groups, as torch takes them, of an optimizer of this chain.

        Args:
            chain: The modules.
            routes: The positions of those that send parameters on their ways.
        """
        names = SettingNames(chain).keys
        self._routing = [names[path]["route"] for path in routes]
        for way, route in self.routes.items():
            start = f"0/{route}/" if routes else ""
            inside = [keys for path, keys in names.items() if f"{path}/".startswith(start)]
            self._keys[way] = {
                name: [keys[name] for keys in inside if name in keys] for name in LAYOUT
            }
        groups = self._grouped(self._members)
        self._tell(self._members, groups)
        self._members = []
        return [as_torch(group) for group in groups]

    def late(self, group: Mapping[str, Any]) -> list[Group]:
        """Returns the groups that a group which is added later is split into.

        Parameters of the model have their names in it; others have none, if it is a model that the
        recipe was given, so that a tool need not know names.
        """
        members = self._assigned([added(self.recipe, group)], first=False)
        for each in members:
            if each.way not in self.routes and self.ways[each.way].modules is not None:
                name, parameter = each.pair
                raise ArgumentError(
                    f"{self.recipe} was given {name or 'a parameter'} of shape "
                    f"{tuple(parameter.shape)} to add, which it does not project. It was built "
                    "without such parameters, so there is no module for it. Pass one such "
                    "parameter when it is built, too."
                )
        groups = self._grouped(members)
        return groups if self._model is not None else [as_torch(each) for each in groups]

    def _assigned(self, given: list[Group], first: bool) -> list[Member]:
        """Returns where each parameter of some groups goes, in the order of ways."""
        pairs, known = self._inspected(given)
        types, roles = [each.types or None for each in known], [each.role for each in known]
        tensors = [parameter.detach() for _, parameter in pairs]
        chosen = self.rules.choose([name for name, _ in pairs], tensors, types, roles=roles)
        if first:
            self._refuse_idle(chosen, pairs)
        places = [place for place, group in enumerate(given) for _ in group["params"]]
        members = []
        for place, pair, rule, facts in zip(places, pairs, chosen, known, strict=True):
            own = {key: value for key, value in given[place].items() if key != "params"}
            _, way, of_rule = self.table[rule]
            settings = {**self.ways[way].settings, **of_rule, **own}
            table = facts.role == "embedding" and facts.transposed and pair[1].ndim > 2
            needs = {"folding": facts.role == "stack" or table, "transposed": facts.transposed}
            layout = tuple(name for name in LAYOUT if needs[name] and name not in settings)
            last = len(self.ways) - 1
            note = None
            if way < last:
                note = self.unfit(pair[1], {**{name: LAYOUT[name] for name in layout}, **settings})
            if way == 0 and note is None and settings.get("route") == last > 0:
                note = f"route={settings['route']}"
            if note is not None:
                way, rule = last, rule if of_rule else len(self.table) - 1
            elif way > 0:
                note = self._reason(facts)
            if way > 0:
                settings = {**of_rule, **own, **self.ways[way].settings}
            members.append(Member(way, place, rule, pair, settings, layout, note or ""))
        return members

    def _grouped(self, members: list[Member]) -> list[Group]:
        """Returns groups in the order of ways, of the groups given, and of their rules.

        Stacks of matrices, and weights of inputs by outputs, are in groups of their own, which say
        so to the modules that have a setting for it.
        """
        found: dict[tuple[int, int, int, tuple[str, ...]], Group] = {}
        for each in members:
            keys = self._keys.get(each.way, {})
            layout = {key: LAYOUT[name] for name in each.layout for key in keys.get(name, ())}
            key = each.way, each.place, each.rule, tuple(layout)
            if key not in found:
                group: Group = {**layout, **each.settings}
                route = self.routes.get(each.way, 0)
                group |= zip(self._routing, (route, min(route, 1)), strict=False)
                self._refuse_other_values(group)
                found[key] = {**group, "params": [], "param_notes": []}
            group = found[key]
            told = []
            sides = [side for side in each.pair[1].shape if side != 1]
            if len(sides) > 2 and any(group.get(key) == "last2" for key in keys.get("folding", ())):
                told.append(f"{math.prod(sides[:-2])} matrices")
            if any(group.get(key) for key in keys.get("transposed", ())):
                told.append("inputs by outputs")
            group["params"].append(each.pair)
            group["param_notes"].append(each.note or ", ".join(told))
        return [found[key] for key in sorted(found)]

    def _inspected(self, given: list[Group]) -> tuple[list[Pair], list[Known]]:
        """Returns all pairs of name and parameter, and their facts, without types if unknown."""
        model = None if self._model is None else self._model()
        known = {} if model is None else inspect_model(model)
        pairs: list[Pair] = []
        facts: list[Known] = []
        for name, parameter in (pair for group in given for pair in group["params"]):
            found = known.get(parameter)
            name = found.name if found and name is None else name
            if is_lazy(parameter):
                raise ArgumentError(
                    f"{self.recipe} was given {name or 'a parameter'}, whose shape is not known "
                    "yet. It goes by shapes. Run the model once, which gives lazy layers theirs."
                )
            pairs.append((name, parameter))
            facts.append(found or facts_of(name, parameter))
        return pairs, facts

    def _reason(self, facts: Known) -> str:
        """Why the rules of the first way leave a parameter out."""
        if not self.ways[0].by_role and facts.role != "vector":
            return "left out by project"
        if facts.role == "other":
            return f"no linear map of {facts.types[0]}" if facts.types else "no linear map"
        return NOTES.get(facts.role, "")

    def _refuse_idle(self, chosen: Sequence[int], pairs: Sequence[Pair]) -> None:
        if self.ways[0].by_role:
            return
        for place, (rule, way, _) in enumerate(self.table):
            if way == 0 and place not in chosen:
                names = ", ".join(name or f"{tuple(p.shape)}" for name, p in pairs[:8])
                raise ArgumentError(
                    f"The rule {_text(rule)!r} of {self.recipe} matches no parameter that rules "
                    f"before it leave. There are {names}{', ...' if len(pairs) > 8 else ''}. "
                    "Correct or remove it."
                )

    def _refuse_none(self) -> None:
        every = [f"{tuple(each.pair[1].shape)} ({each.note})" for each in self._members]
        raise ArgumentError(
            f"{self.recipe} would project none of its {len(every)} parameters, of shapes "
            f"{', '.join(every[:5])}{', ...' if len(every) > 5 else ''}. It projects those of the "
            f"rules {', '.join(repr(_text(rule)) for rule in self.ways[0].table)}. Correct what "
            "the brackets say, such as the rank, or pass other rules as project."
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

    def _tell(self, members: list[Member], groups: list[Group]) -> None:
        """Logs which parameters are left out, and why, and how others are taken for matrices."""
        count = sum(each.way == 0 for each in members)
        notes: dict[str, list[str]] = {}
        for group in groups:
            for (name, parameter), note in zip(group["params"], group["param_notes"], strict=True):
                if note:
                    notes.setdefault(note, []).append(name or f"{tuple(parameter.shape)}")
        projected = [not is_frozen(each.pair[1]) for each in members if each.way == 0]
        told = [
            f"{note}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" * (len(names) > 3))
            for note, names in notes.items()
        ]
        frozen = sum(is_frozen(each.pair[1]) for each in members)
        if frozen:
            told.append(f"frozen, so without state until they are not: {frozen}")
        text = "%s projects %d of %d parameters. %s"
        if not any(projected):
            text = "%s projects %d of %d parameters, all of them frozen. %s"
        level = logging.INFO if any(projected) else logging.WARNING
        log.log(level, text, self.recipe, count, len(members), "; ".join(told))


def _text(rule: Any) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))
