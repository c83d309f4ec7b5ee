"""The plan run without values: what runs where, and the memory that modules will keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from projcore.core.module import Row
from projcore.core.objective import RootObjective
from projcore.core.state import Node, State

if TYPE_CHECKING:
    from projcore.core.optimizer import Optimizer


def outline(
    optimizer: Optimizer,
    groups: Sequence[Mapping[str, Any]],
    rows: list[Row] | None = None,
    members: Sequence[int] | None = None,
) -> list[Node]:
    """Runs the plan on tensors without storage; returns the memory it would make, for each tensor.

    Projections learn their maps on such tensors too, so if they refuse the parameters, they do so
    here. ``members`` are the places of parameters that take part, by default those that do now.
    """
    parameters = [p for group in groups for p in group["params"]]
    numbers = [i for i, group in enumerate(groups) for _ in group["params"]]
    names = parameter_names(groups)
    if members is None:
        present = optimizer._present(parameters)
        members = [i for i, facts in enumerate(present) if facts is not None]
    trees: list[Node] = [{} for _ in parameters]
    if not members:
        return trees
    without_storage = {
        i: torch.empty_like(p, device="meta") for i, p in enumerate(parameters) if not is_lazy(p)
    }
    templates = [without_storage[i] for i in members]
    objective = RootObjective(
        templates,
        templates,
        [numbers[i] for i in members],
        optimizer._names.table(groups),
        elide=optimizer._elide,
        names=names,
        places=members,
    )
    absent = sorted(without_storage.keys() - set(members))
    objective.absent = (
        [(names[i], without_storage[i], numbers[i]) for i in absent]
        if len(without_storage) == len(parameters)
        else None
    )
    nodes = [trees[i] for i in members]
    with torch.no_grad():
        optimizer.module.prepare(objective, State(nodes, nodes[0]), [] if rows is None else rows)
    return trees


def parameter_names(groups: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Returns the name of each parameter of groups, None for those that were given without."""
    return [
        name for group in groups for name in group.get("param_names", [None] * len(group["params"]))
    ]
