"""The sums over processes that a step takes: norms and means of sharded parameters, and the like.

Modules that take shards are run on tensors without storage, and their reductions are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from projcore._shards import Reduction, is_sharded, recorded
from projcore.core.objective import Objective
from projcore.engine.facts import LiveSettings
from projcore.engine.gather import Gather
from projcore.engine.local import Local
from projcore.engine.making import Plan
from projcore.engine.nodes import Frame, Node
from projcore.engine.plan import Rate
from projcore.engine.region import Region
from projcore.engine.shards import Shards
from projcore.engine.sketch import Sketch
from projcore.engine.tree import is_elementwise, takes_shards
from projcore.ops import local, norms_of_kinds

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


class Sums(NamedTuple):
    """The sums over processes that a module takes in a step.

    Attributes:
        module: The module, or the argument of the optimizer, as text.
        reductions: The collectives.
        known: Whether there are no others. A module that reads values, as a line search does, is
            run only up to there.
    """

    module: str
    reductions: list[Reduction]
    known: bool = True

    def __str__(self) -> str:
        several = [f"{each.sent:,} bytes (a sum of {each.bytes:,})" for each in self.reductions]
        more = [] if self.known else ["more, which depends on values"]
        return f"for {self.module}: {', then '.join([*several, *more])}"


@torch.no_grad()
def step_sums(optimizer: Optimizer, plan: Plan, params: Sequence[Tensor]) -> list[Sums]:
    """Returns the sums of a step.

    Args:
        optimizer: The optimizer.
        plan: Its plan, which must be one that is not run: state is replaced.
        params: All parameters, as `without_storage` returns them.
    """
    found = []
    if optimizer.nonfinite != "allow":
        with recorded() as reductions:
            norms_of_kinds([params[i] for i in plan.members])
        found.append(Sums(f"nonfinite={optimizer.nonfinite!r}", reductions))
    reads_loss = not optimizer.module.total_needs.isdisjoint({"loss", "closure"})
    if reads_loss and optimizer.average_loss is not False:
        meshes = dict.fromkeys(each.device_mesh for each in params if is_sharded(each))  # type: ignore[attr-defined]
        size = torch.promote_types(params[0].dtype, torch.float32).itemsize
        means = [Reduction(size, mesh.size()) for mesh in meshes]
        found.append(Sums("the loss, in each evaluation", means))
    context = LiveSettings(optimizer._names, optimizer.param_groups, found={})
    found += _of_region(plan.region, params, context)
    return [each for each in found if each.reductions or not each.known]


def without_storage(parameter: Tensor) -> Tensor:
    """Returns a parameter on the device ``meta``, sharded as it is."""
    if not is_sharded(parameter):
        return torch.empty_like(parameter, device="meta")
    part = torch.empty_like(local(parameter), device="meta")
    return Shards.of(parameter).wrap(part)


def _of_region(region: Region, params: Sequence[Tensor], context: LiveSettings) -> Iterator[Sums]:
    template = [params[i] for (i,) in region.space.parameter_indices]
    objective = Sketch(replace(region.space, template=template), context)
    for node in region.nodes:
        if isinstance(node.module, (Rate, Gather, Local)) or not takes_shards(node.module):
            continue
        if is_elementwise(node.module):
            for inner in node.regions():
                yield from _of_region(inner, params, context)
        elif any(is_sharded(template[i]) for i in node.where):
            yield _of_node(node, region, objective)


def _of_node(node: Node, region: Region, objective: Objective) -> Sums:
    node.bind([{} for _ in region.space.state.trees])
    with recorded() as reductions:
        try:
            node.run(Frame(list(objective.template), objective))
        except RuntimeError:  # there are no values that it could read
            return Sums(str(node.module), reductions, known=False)
    return Sums(str(node.module), reductions)
