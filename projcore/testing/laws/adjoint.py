"""Gradients go inside by the chain rule."""

from __future__ import annotations

import torch

from projcore import Current
from projcore.testing.law import ensure, ensure_close, law
from projcore.testing.problem import flat, shaped
from projcore.testing.run import maps
from projcore.testing.subject import Subject


@law(kind="projection", tags=["linear"])
@torch.no_grad()
def adjoint(subject: Subject) -> None:
    r"""`unproject` is linear, and `project` of a gradient or an update is its adjoint.

    With :math:`U` the dense matrix of `unproject`, column by column: ``unproject(z)`` is
    :math:`U z` for each ``current``, and ``project(g)`` is :math:`U^\top g` for ``"grads"`` and
    ``"update"``, and equals the gradient of `unproject` by autograd.
    """
    for made, _, grads, tolerance in maps(subject):
        matrix = made.matrix()
        draw = torch.Generator().manual_seed(2)
        z = torch.randn(matrix.shape[1], generator=draw, dtype=torch.float64)
        z = flat(shaped(z, made.inside))  # as the dtypes inside can hold it
        currents: tuple[Current, ...] = ("update", "grads", "params")
        for current in currents:
            ensure_close(
                [flat(made.unproject(shaped(z, made.inside), current))],
                [matrix @ z],
                tolerance,
                f"unproject is not linear, or not the same for current={current!r}",
                'unproject applies the same linear map for each current, or the tag "linear" is '
                "wrong.",
            )
        for current in currents[:2]:
            ensure_close(
                [flat(made.project(grads, current))],
                [matrix.T @ flat(grads)],
                tolerance,
                f"project is not the adjoint of unproject for current={current!r}",
                'For "grads" and "update" project applies the transpose of what unproject applies, '
                "not its inverse.",
            )
        leaves = [tensor.detach().clone().requires_grad_() for tensor in made.inside]
        with torch.enable_grad():
            outside = made.unproject(leaves, "update")
        depends = [(t, g) for t, g in zip(outside, grads, strict=True) if t.requires_grad]
        if depends:
            chain = torch.autograd.grad(
                [tensor for tensor, _ in depends],
                leaves,
                [grad for _, grad in depends],
                materialize_grads=True,
            )
            ensure_close(
                made.project(grads, "grads"),
                chain,
                tolerance,
                "project of a gradient is not what autograd makes of it",
                "Correct project for current='grads'.",
            )
        if "orthonormal" in subject.tags and "redundant" not in subject.tags:
            eye = torch.eye(matrix.shape[1], dtype=torch.float64)
            ensure(
                bool(torch.allclose(matrix.T @ matrix, eye, rtol=0, atol=tolerance)),
                "The columns of unproject are not orthonormal.",
                'Scale it so that it keeps norms, or remove the tag "orthonormal".',
            )
