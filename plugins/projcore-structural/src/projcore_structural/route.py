"""Different modules for different parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from projcore import Module, Planner, Rules, Settings, Space, as_module
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore_structural._parts import choose

Predicate = Callable[["str | None", Tensor], bool]


class Route(Module):
    r"""Runs different modules on different parameters, chosen by name, shape or dtype.

    Each tensor is routed to the first rule that matches it: modules that act on all tensors at once
    see only those of their route. The setting ``route`` of a parameter group, the index of a rule,
    takes precedence over the rules for all parameters of the group.

    A rule is a string of conditions that must all hold (``"*.weight ndim==2"``, see
    `projcore.Rules`), or a function of a name and a tensor. Names are known if the optimizer was
    given a model, ``model.named_parameters()``, or groups made by `projcore.param_groups`. Inside a
    projection, tensors have the shapes of its space, and the name of the parameter that they are
    made from, if it is a single one.

    Args:
        routes: For each rule, in order, the modules to run: a module, a spec, a list of these, or
            None to leave the update unchanged. A last rule ``"*"`` is for all other tensors, of
            which there may be none.

    Raises:
        ArgumentError: When the optimizer is built, if a tensor matches no rule, a rule other than
            ``"*"`` matches no tensor, a rule needs a name that is not known, or the ``route`` of a
            group is not the index of a rule.
        ArgumentTypeError: If `routes` is not a mapping, or a rule is neither a string nor a
            function.

    Cost: that of its modules; rules are matched once for each set of shapes and names.

    Example:
        >>> import torch
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

    scope = "tensor"  # its own: each tensor is routed separately
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

    def check(self, settings: Settings) -> None:
        route, count = settings["route"], len(self.rules.rules)
        if route is None or (type(route) is int and 0 <= route < count):
            return
        raise ArgumentError(
            f"Route was given route={route!r} for a parameter group. Pass the index of a rule, "
            f"from 0 to {count - 1}, or None to apply the rules."
        )

    def plan(self, planner: Planner, space: Space) -> None:
        routes = choose(planner, self.rules, space, "route")
        planner.add_entry(
            space, "route", routes, [str(self.rules.rules[route]) for route in routes]
        )
        for name, module in self.children.items():
            chosen = [i for i, route in enumerate(routes) if route == int(name)]
            if chosen:
                module.plan(planner, space.select(chosen).child(name))
