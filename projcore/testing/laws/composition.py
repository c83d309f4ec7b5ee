"""The master oracle: running inside is running on the function as seen from inside."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import ProjectionBase
from projcore.errors import NeedsError, ProjcoreError
from projcore.testing.by_hand import methods, train_by_hand
from projcore.testing.law import NotApplicable, ensure_close, law, listed
from projcore.testing.parts import Scale
from projcore.testing.problem import flat, make_problem
from projcore.testing.run import maps, train
from projcore.testing.subject import Subject

TOLERANCE = 1e-9  # between two float64 runs of a few steps that round differently
STEPS = 4


@law(kind="projection", tags=["linear"])
def composition(subject: Subject) -> str | None:
    r"""Modules inside act as on the function :math:`z \mapsto f(x_0 + U (z - z_0))`.

    Momentum, Adam, Adam with a line search, and a mixture of all facts that a module may read run
    inside the projection, and by hand, with autograd, on that function; :math:`U` is the dense
    matrix of `unproject` at each step, and :math:`z_0` the projected parameters. In float64 and
    complex128.
    """
    if adds_to_unproject(subject):
        raise NotApplicable("its combine returns more than unproject does")
    left_out = []
    projection = subject.around(Scale())
    for name, (method, modules) in methods().items():
        for dtype in (torch.float64, torch.complex128):
            ours, oracle = make_problem(dtype=dtype), make_problem(dtype=dtype)
            try:
                actual = train(ours, [kept(subject.around(*modules()))], STEPS)
            except NeedsError as error:
                left_out.append(f"{name}: {error}")
                continue
            except ProjcoreError as error:
                if dtype is torch.float64:
                    raise
                left_out.append(f"{dtype}: {error}")
                continue
            expected = train_by_hand(oracle, [projection], method, STEPS)
            ensure_close(
                actual,
                expected,
                TOLERANCE,
                f"{name} inside, in {dtype}, is not {name} on z -> f(x0 + U (z - z0))",
                "Parameters, gradients and the update must cross by one map, learnt in refresh "
                "alone: project applies the transpose of U to gradients and updates, and a left "
                "inverse to params.",
            )
    return listed(left_out)


def kept(projection: ProjectionBase) -> ProjectionBase:
    """Returns the projection, set to keep memory when its map changes."""
    if projection.on_refresh != "keep":
        projection.on_refresh = "keep"
    return projection


@torch.no_grad()
def adds_to_unproject(subject: Subject) -> bool:
    """Whether the projection's `combine` returns anything else than `unproject` would."""
    if subject.cls.combine is ProjectionBase.combine:  # type: ignore[attr-defined]
        return False
    for made, _, grads, tolerance in maps(subject):
        result: list[Tensor] = [0.5 * tensor for tensor in made.inside]
        one, other = flat(made.combine(grads, result)), flat(made.unproject(result, "update"))
        return bool((one - other).abs().max() > tolerance)
    return False
