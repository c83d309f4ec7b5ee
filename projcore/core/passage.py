"""A step inside a projection: the modules there have run, and nothing has come out yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from projcore.core.blend import Blend, Write
from projcore.core.crossing import Crossing, ProjectedObjective
from projcore.core.module import Transform
from projcore.core.objective import Objective
from projcore.core.state import State

if TYPE_CHECKING:
    from projcore.core.projection import ProjectionBase


class Passage(NamedTuple):
    """A step that is inside a projection: what went in, and what the modules there made of it.

    Attributes:
        crossing: The way back.
        update: The update that came in.
        projected: What it was inside.
        result: What the modules returned.
        places: The place of each of its tensors among those of the whole space.
    """

    crossing: Crossing
    update: list[Tensor]
    projected: list[Tensor]
    result: list[Tensor]
    places: Sequence[int]

    @property
    def passing(self) -> dict[int, Tensor]:
        """The result for each tensor that was not projected, by its place in the whole space."""
        return {self.places[i]: self.result[i] for i in self.crossing.passing}

    def writes(self, targets: Sequence[Tensor], blends: Sequence[Blend]) -> list[Write]:
        """Returns what writes the tensors that were projected."""
        applied = [self.places[i] for i in self.crossing.applied]
        if not applied:
            return []
        return self.crossing.writes(
            [targets[i] for i in applied],
            [blends[i] for i in applied],
            self.update,
            self.projected,
            self.result,
        )


def enter(
    projection: ProjectionBase, update: list[Tensor], objective: Objective, state: State
) -> Passage:
    """Runs all modules inside, on the tensors that may enter."""
    chosen = projection.awake(objective, state)
    if chosen is None:
        return run_inside(projection, None, update, objective, state)
    part = [update[i] for i in chosen]
    passage = run_inside(projection, None, part, objective.select(chosen), state.select(chosen))
    return passage._replace(places=chosen)


def run_inside(
    projection: ProjectionBase,
    names: Sequence[str] | None,
    update: list[Tensor],
    objective: Objective,
    state: State,
) -> Passage:
    """Runs modules of the chain inside, all or those named."""
    crossing = Crossing(projection, objective, state)
    update = crossing.receive(update)
    crossing.refresh(update)
    if projection.project_update:
        projected = crossing.down(update, "update")
    else:
        projected = crossing.down(objective.grads, "grads")
    inner = ProjectedObjective(crossing, projected)
    memory = crossing.memory(state)
    chain = projection.chain
    if names is None and _may_overwrite(projection, inner):
        result = _overwrite(crossing, projected, inner, memory)
    else:
        result = chain.run(names or chain.children, projected, inner, memory)
    return Passage(crossing, update, projected, result, range(len(update)))


def _may_overwrite(projection: ProjectionBase, inner: Objective) -> bool:
    """Whether the one module inside may write into what was projected."""
    if not projection.spends or inner.batch_dims or len(projection.chain.modules) != 1:
        return False
    module = projection.chain.modules[0]
    # One that needs parameters takes its targets for these.
    return isinstance(module, Transform) and module.writes_itself and not module.needs


def _overwrite(
    crossing: Crossing, projected: list[Tensor], inner: Objective, memory: State
) -> list[Tensor]:
    ((name, module),) = crossing.projection.chain.children.items()
    assert isinstance(module, Transform)
    result = list(projected)
    for i in crossing.passing:  # the update itself, which is not ours
        result[i] = torch.zeros_like(projected[i])
    blends = [Blend(scale=-1.0, decay=1.0)] * len(result)  # p - (-u) - p, which is u
    for write in module.make_writes(result, blends, projected, inner, memory.child(name)):
        write.run()
    return result
