"""Different modules for different parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Module, Objective, Row, Rules, Settings, State, as_module
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore_structural._parts import choose, choose_all

Predicate = Callable[["str | None", Tensor], bool]


class Route(Module):
    r"""Runs different modules on different parameters, chosen by name, shape or dtype.

    Each tensor goes to the first rule that holds for it, and only there: modules that work on all
    tensors at once see those of their own route. The setting ``route`` of a parameter group, the
    number of a rule, sends all of the group there, whatever the rules say.

    A rule is text, words that must all hold (``"*.weight ndim==2"``, see `projcore.Rules`), or a
    function of a name and a tensor. Names are known if the optimizer was given
    ``model.named_parameters()``, or groups made by `projcore.param_groups`. Inside a projection,
    tensors have the shapes there, and the name of the parameter that they are made from, if it is
    one.

    Args:
        routes: For each rule, in order, what to run: a module, a spec, a list of these, or None to
            hand the update on as it is. A last rule ``"*"`` is for what others leave, if anything.

    Raises:
        ArgumentError: When the optimizer is built, if a tensor has no rule, a rule other than
            ``"*"`` holds for no tensor, a rule asks for a name that is not known, or the ``route``
            of a group is no number of a rule.
        ArgumentTypeError: If `routes` is no mapping, or a rule is neither text nor a function.

    Cost: none beside its modules; rules are matched once for each set of shapes and names.

    Example:
        >>> from projcore import Optimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> route = Route({"1.*": "lr(0.01)", "*.weight": ["sign()", "lr(1e-3)"], "*": "lr(0.1)"})
        >>> optimizer = Optimizer(model.named_parameters(), route)
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter  shape  dtype    group  route        state bytes
        ---------  -----  -------  -----  -----------  -----------
        0.weight   4 x 3  float32  0      0: *.weight  0
        0.bias     4      float32  0      0: *         0
        1.weight   2 x 4  float32  0      0: 1.*       0
        1.bias     2      float32  0      0: 1.*       0
    """

    scope = "tensor"  # its own: each tensor is routed by itself
    sharded = True
    kinds = {"route": "fixed"}

    def __init__(self, routes: Mapping[str | Predicate, Any]) -> None:
        if not isinstance(routes, Mapping):
            raise ArgumentTypeError(
                f"Route was given {routes!r}. It takes a mapping from rules to modules. Pass for "
                'example {"ndim==2": [...], "*": [...]}.'
            )
        self.rules = Rules(routes, "Route")
        modules = {
            str(i): as_module(value) for i, value in enumerate(routes.values()) if value is not None
        }
        super().__init__({"route": None}, **modules)
        self.final = any(module.final for module in modules.values())

    def check(self, settings: Settings) -> None:
        route, count = settings["route"], len(self.rules.rules)
        if route is None or (type(route) is int and 0 <= route < count):
            return
        raise ArgumentError(
            f"Route was given route={route!r} for a parameter group. It is the number of a rule, "
            f"from 0 to {count - 1}, or None to go by the rules. Pass one of these."
        )

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        result = list(update)
        for name, chosen in self._parts(self._routes(objective, state)):
            part = [update[i] for i in chosen]
            done = self.children[name].step(
                part, objective.select(chosen), state.select(chosen).child(name)
            )
            for i, tensor in zip(chosen, done, strict=True):
                result[i] = tensor
        return result

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        routes = choose_all(self.rules, objective, self._given(objective, state))
        for node, route in zip(state.nodes, routes, strict=True):
            node["route"] = route
        shapes = [tuple(tensor.shape) for tensor in objective.template]
        labels = [str(self.rules.rules[route]) for route in routes]
        rows.append(Row(state.path, self, shapes, objective.sources, labels))
        for name, chosen in self._parts(routes):
            self.children[name].prepare(
                objective.select(chosen), state.select(chosen).child(name), rows
            )

    def _routes(self, objective: Objective, state: State) -> Sequence[int]:
        """The index of each tensor's route; in a trace, as the eager step before noted it."""
        given = self._given(objective, state)
        if torch.compiler.is_compiling():
            noted = [node["route"] for node in state.nodes]
            return [old if new is None else new for old, new in zip(noted, given, strict=True)]
        routes = choose(self.rules, objective, given)
        for node, route in zip(state.nodes, routes, strict=True):
            node["route"] = route
        return routes

    def _given(self, objective: Objective, state: State) -> tuple[int | None, ...]:
        """The route that the group of each tensor names, or None."""
        return tuple(settings["route"] for settings in objective.settings(state.path))

    def _parts(self, routes: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The tensors of each route that has modules, with its name."""
        parts = []
        for name in self.children:
            chosen = [i for i, route in enumerate(routes) if route == int(name)]
            if chosen:
                parts.append((name, chosen))
        return parts
