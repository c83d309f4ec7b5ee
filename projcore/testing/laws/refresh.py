"""A map is replaced, and not written over."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore.testing.law import NotApplicable, ensure, law
from projcore.testing.parts import Scale
from projcore.testing.run import maps
from projcore.testing.subject import Subject

TIMES = 4  # with other data each time, as a projection may learn its map every few steps


@law(kind="projection")
@torch.no_grad()
def refresh(subject: Subject) -> None:
    """`refresh` returns new tensors, and does not change those of the old map.

    The old basis is needed to transport the state inside to the new one, and to undo the step if it
    fails.
    """
    if not subject.around(Scale()).overrides("refresh"):
        raise NotApplicable("it has no refresh of its own")
    for made, problem, grads, _ in maps(subject):
        for time in range(TIMES):
            versions = [
                (key, value, value._version)
                for state in made.states
                for key, value in state.items()
                if isinstance(value, Tensor)
            ]
            update = [grad.roll(time) for grad in grads]
            made.learn(update, problem.point(), update, problem.closure())
            for key, value, version in versions:
                ensure(
                    value._version == version,
                    f"refresh wrote into {key!r} of its state in place.",
                    f"Return a new state for each tensor, [{{{key!r}: new}}, ...]: the old one is "
                    "needed to carry the state of modules inside over, and if the step fails.",
                )
