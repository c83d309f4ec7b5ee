"""Projecting undoes unprojecting, and the reverse where nothing is lost."""

from __future__ import annotations

import torch

from projcore import Current
from projcore.testing.law import ensure_close, law
from projcore.testing.problem import flat, shaped
from projcore.testing.run import maps
from projcore.testing.subject import Subject


@law(kind="projection")
@torch.no_grad()
def round_trip(subject: Subject) -> None:
    """`project` undoes `unproject`.

    ``project(unproject(z)) == z`` with ``current="params"`` for every `z` if the map is linear, and
    with ``"update"``, too, if it is orthonormal; otherwise, and if it is redundant, for every `z`
    that is the projection of a point. ``unproject(project(x)) == x`` if it is lossless. Up to
    rounding.
    """
    for made, problem, _, tolerance in maps(subject):
        point = problem.point()
        currents: list[Current] = ["params"]
        if "orthonormal" in subject.tags:
            currents += ["update", "grads"]
        for current in currents:
            inside = made.project(point, current)
            if "linear" in subject.tags and "redundant" not in subject.tags:
                draw = torch.Generator().manual_seed(1)
                values = torch.randn(flat(inside).numel(), generator=draw, dtype=torch.float64)
                inside = shaped(values, inside)
            again = made.project(made.unproject(inside, current), current)
            ensure_close(
                again,
                inside,
                tolerance,
                f"project(unproject(z)) is not z for current={current!r}",
                'project must apply a left inverse of unproject for "params". A NaN means that it '
                "reads params without declaring them in needs.",
            )
            if "lossless" in subject.tags:
                inside = made.project(point, current)
                ensure_close(
                    made.unproject(inside, current),
                    point,
                    tolerance,
                    f"unproject(project(x)) is not x for current={current!r}",
                    'Correct unproject, or remove the tag "lossless".',
                )
