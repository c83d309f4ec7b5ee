"""Results that must not depend on the space."""

from __future__ import annotations

import torch

from projcore.engine.plan import PASSES
from projcore.errors import ProjcoreError
from projcore.testing.law import ensure_close, law
from projcore.testing.parts import Moments, Momentum, Scale, UnitNorm
from projcore.testing.problem import make_problem
from projcore.testing.run import train
from projcore.testing.subject import Subject

TOLERANCE = 1e-12  # between two float64 runs of a few steps that round differently
STEPS = 4


@law(kind="projection", tags=["lossless", "orthonormal"])
def invariance(subject: Subject) -> None:
    """Gradient descent inside equals gradient descent outside.

    This holds for every lossless orthonormal projection, because :math:`U U^T = I`. Inside one that
    only rearranges elements (``layout``), the same is true of elementwise modules; and the plan,
    which runs them outside, gives the result of the modules, for any other modules in the chain.
    """
    for dtype in (torch.float64, torch.complex128):
        try:
            inside = train(make_problem(dtype=dtype), [subject.around(Scale())], STEPS)
        except ProjcoreError:
            if dtype is torch.float64:
                raise
            continue
        ensure_close(
            inside,
            train(make_problem(dtype=dtype), [Scale()], STEPS),
            TOLERANCE,
            f"Gradient descent inside, in {dtype}, is not gradient descent",
            "project and unproject must keep inner products and lose nothing; or remove the tag "
            '"lossless" or "orthonormal".',
        )
    if "layout" not in subject.tags:
        return
    outside = train(make_problem(), [Moments(), Momentum(), Scale()], STEPS)
    none = frozenset[str]()
    for passes in (none, PASSES):
        inside = train(
            make_problem(), [subject.around(Moments(), Momentum(), Scale())], STEPS, passes
        )
        ensure_close(
            inside,
            outside,
            TOLERANCE,
            f"Elementwise modules inside, run {'outside' if passes else 'there'}, do not do "
            "what they do outside",
            "A layout projection puts each element of each tensor into one place inside, and back. "
            "Correct it, or its geometry.",
        )
    recipe, planned = (
        train(
            make_problem(),
            [subject.around(Momentum(), UnitNorm(), Moments(), Scale())],
            STEPS,
            passes,
        )
        for passes in (none, PASSES)
    )
    ensure_close(
        planned,
        recipe,
        TOLERANCE,
        "The plan does not do what the recipe says",
        "A layout projection puts each element of each tensor into one place inside, and back.",
    )
