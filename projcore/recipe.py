r"""Building blocks of recipes: modules by the role of each parameter, and documentation.

A recipe is a function of a model and settings that returns an optimizer. `routed` builds it from
specs of modules; `documented` completes the recipe's docstring.

Example:
    >>> @documented(lr="Learning rate of both.")
    ... def muon(params: Params, lr: float = 1e-3, project: Project = HIDDEN) -> Optimizer:
    ...     '''Muon on hidden matrices, Adam on the rest.'''
    ...     ways = [Way([{"muon": {"flatten": True}}], project, "ndim>=2"), Way([{"adam": {}}])]
    ...     return routed("muon", params, ways, [{"lr": lr}])
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    >>> print(muon(model).describe().partition("\n\n")[0])
    parameter  shape  dtype    group  route       state bytes  note
    ---------  -----  -------  -----  ----------  -----------  -----------------
    0.weight   2 x 3  float32  0      0: ndim>=2  24
    0.bias     2      float32  1      0: *        24           no matrix
    1.weight   2 x 2  float32  1      0: *        40           last linear layer
    1.bias     2      float32  1      0: *        24           no matrix
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from projcore._pairs import Params
from projcore._split import Split
from projcore.core.chain import as_chain
from projcore.core.module import Module
from projcore.engine.part import check_recipe_in_zero
from projcore.optimizer import Optimizer

__all__ = ["HIDDEN", "LINEAR", "Params", "Project", "Rule", "Spec", "Way", "documented", "routed"]

Rule = str | Callable[[str | None, Tensor], bool]
Project = Rule | Sequence[Rule] | Mapping[Rule, Mapping[str, Any]] | None
Spec = Module | Mapping[str, Any] | str
Recipe = TypeVar("Recipe", bound=Callable[..., torch.optim.Optimizer])

LINEAR = "role!=vector role!=embedding role!=head role!=depthwise role!=other"
"""The rule of all matrices of linear maps, but embeddings and output layers."""
HIDDEN = f"{LINEAR} role!=last"
"""The same without the last linear layer."""

ARGUMENTS = {
    "params": "A model, parameters, or groups.",
    "lr": "Learning rate.",
    "betas": "Decay rates of Adam's running averages.",
    "eps": "Added to the root of Adam's second moment, for stability.",
    "weight_decay": "Coefficient of decoupled weight decay.",
    "momentum": "Decay rate of the momentum.",
    "period": "Steps between refreshes.",
    "seed": "Seed of random numbers.",
    "project": "The parameters to project: rules, which may have settings.",
}
RAISES = "    ArgumentError: If no parameter would be projected, or a setting is out of range."
EXAMPLE = """\
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    >>> optimizer = {name}({arguments})"""


@dataclass(frozen=True)
class Way:
    """The modules that some parameters go through.

    Attributes:
        modules: The modules; None for those of the first way, with other settings.
        project: Which parameters these are, of those that no way before picks: a rule (see
            `projcore.Rules`), several, of which one must hold, or a mapping from rules to settings
            of the parameters that they pick. None stands for `LINEAR`.
        shape: The rule of the ``route`` module that stands for the way. An optimizer that was
            pickled goes by it, where groups are added.
        settings: Of the groups of its parameters. Those of the first way may be overridden by a
            rule, or a group given; those of others hold.
    """

    modules: Sequence[Spec] | None
    project: Project = "*"
    shape: str = "*"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Mapping[Rule, Mapping[str, Any]]:
        """Its rules, with the settings of each."""
        rules = LINEAR if self.project is None else self.project
        if isinstance(rules, Mapping):
            return rules
        return {
            rule: {} for rule in ([rules] if isinstance(rules, str) or callable(rules) else rules)
        }

    @property
    def by_role(self) -> bool:
        """Whether it picks parameters as recipes do by default."""
        return list(self.table) in ([LINEAR], [HIDDEN])


def routed(
    recipe: str,
    params: Params,
    ways: Sequence[Way],
    modules: Sequence[Spec] = (),
    *,
    last: Sequence[Spec] = (),
    fixed: Mapping[str, Any] | None = None,
    unfit: Callable[[Tensor, Mapping[str, Any]], str | None] = lambda tensor, settings: None,
) -> Optimizer:
    """Returns an optimizer of the ways that parameters take, and of modules for all of them.

    A parameter goes by its name, shape and role (see `projcore.inspect_model`): those of a model
    are known from its layers, those of named parameters from their names. A way that no parameter
    takes is left out; where several are taken, there is a ``route`` module. Stacks of matrices, as
    the experts of a mixture are, are in groups of their own, which have ``folding="last2"`` for the
    modules that have such a setting; and so are weights stored as inputs by outputs, which have
    ``transposed=True``. Parameters that can never be trained are left out.

    Groups have notes on the parameters that the first way leaves out, which `Optimizer.describe`
    shows, and the logger ``projcore`` tells once, at the level INFO; at WARNING if all parameters
    that take the first way are frozen, as where adapters are too small for a rank. Groups that are
    added later go by the same rules.

    Args:
        recipe: The name of the recipe, for messages.
        params: A model, parameters, pairs of name and parameter, or groups of these.
        ways: The recipe's own modules are the first way; the last is for parameters that this
            leaves out.
        modules: For all parameters, behind their ways.
        last: For the parameters of the first way, behind all others.
        fixed: Settings that have one value for all parameters, because the recipe makes another
            module with it.
        unfit: Says why a parameter goes the last way after all, or None. It is given the parameter,
            which a rule of another way picks, and the settings of its group.

    Raises:
        ArgumentError: If no parameter takes the first way, all are frozen, or a rule of the first
            way that the user gave matches nothing.
        ArgumentTypeError: If something is neither a parameter nor a pair of a name and one.
    """
    check_recipe_in_zero(recipe)
    split = Split(recipe, params, ways, fixed or {}, unfit)
    taken = {ways[number].shape: list(ways[number].modules or ()) for number in split.routes}
    if len(taken) == 1:
        chain = as_chain([*taken[ways[0].shape], *modules, *last])
        routes = []
    else:
        behind = [{"route": {"routes": {ways[0].shape: list(last), "*": None}}}] if last else []
        chain = as_chain([{"route": {"routes": taken}}, *modules, *behind])
        routes = ["0", *(str(1 + len(modules)) for _ in behind)]
    optimizer = Optimizer(split.groups(chain, routes), chain)
    optimizer.regroup = split.late
    return optimizer


def documented(
    example: Mapping[str, Any] | None = None, **arguments: str
) -> Callable[[Recipe], Recipe]:
    """Completes a recipe's docstring: its arguments, errors, and an example.

    An argument is described in the section ``Args`` of the docstring, or else here, or else in the
    table of those that most recipes have: ``params``, ``lr``, ``betas``, ``eps``,
    ``weight_decay``, ``momentum``, ``period``, ``seed`` and ``project``.

    Args:
        example: The arguments of the example, beside the model.
        arguments: Descriptions by name.
    """

    def complete(function: Recipe) -> Recipe:
        text, *sections = re.split(r"\n\n(?=\w+:)", inspect.cleandoc(function.__doc__ or ""))
        own = next((each for each in sections if each.startswith("Args:")), "Args:")
        found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", own, flags=re.MULTILINE)
        known = {**ARGUMENTS, **arguments, **dict(found)}
        names = [f"    {name}: {known[name]}" for name in inspect.signature(function).parameters]
        values = (f"{name}={value!r}" for name, value in (example or {}).items())
        shown = EXAMPLE.format(name=function.__name__, arguments=", ".join(["model", *values]))
        kept = {"Raises": f"Raises:\n{RAISES}", "Example": f"Example:\n{shown}"}
        kept |= {each.partition(":")[0]: each for each in sections}
        kept["Args"] = "\n".join(["Args:", *names])
        order = [
            each for each in ("Args", "Raises", "Cost", "Example", "References") if each in kept
        ]
        function.__doc__ = "\n\n".join([text, *(kept[each] for each in order)])
        return function

    return complete
