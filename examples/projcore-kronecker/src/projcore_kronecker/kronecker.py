"""Rotations of matrices from both sides, learnt from the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import (
    Current,
    Entries,
    Kind,
    ProjectionBase,
    Settings,
    first_nonfinite,
    require,
)
from projcore.errors import NonFiniteError


class Kronecker(ProjectionBase):
    r"""Runs modules on matrices rotated to the eigenbasis of their gradients' covariance.

    A matrix :math:`G`, shape ``(m, n)``, is inside :math:`Q_L^\top G Q_R`: with the elements in a
    row, :math:`U = Q_L \otimes Q_R`. The columns of :math:`Q_L` and :math:`Q_R` are eigenvectors of
    the running averages of :math:`G G^\top` and :math:`G^\top G`. Adam inside is SOAP's method.

    The bases are learnt from the gradients of the steps before, and are the identity until `period`
    steps are taken: in the eigenbasis of itself alone a gradient is diagonal, and Adam would make
    full steps of the rounding errors beside the diagonal.

    When they change, state inside is transported. A first moment is rotated. A second moment `v`,
    the diagonal of a covariance, becomes the diagonal of the rotated covariance: :math:`v'_{ij} =
    \sum_{kl} A_{ik}^2 v_{kl} B_{lj}^2`, where `A` and `B` are the changes of basis. It stays
    nonnegative, keeps its sum, and follows eigenvectors that change order or sign.

    Tensors that are not matrices, matrices of complex numbers, and those with a side longer than
    `max_side` pass unchanged.

    Args:
        modules: What to run inside.
        period: Steps between changes of the bases, at least 1.
        beta: Decay of the running averages, in [0, 1).
        max_side: The longest side of a matrix that is rotated.
        project_update: As for `ProjectionBase`; likewise `project_params` and `project_grad`.

    Cost: per matrix ``2 m^2 + 2 n^2`` numbers of memory and four products with a basis a step; two
    eigendecompositions every `period` steps.

    Differs from the authors' code: `torch.linalg.eigh` makes the bases each time, not one step of
    orthogonal iteration; the second moment is rotated as above, not only put in order; the first
    step is not left out; a matrix with one long side is not rotated from the other.

    Example:
        >>> from projcore import Optimizer
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Kronecker(["adam()"]), "lr(3e-3)")

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithm 3)
    """

    scope = "tensor"
    on_refresh = "transport"

    def __init__(
        self,
        modules: Any,
        period: int = 10,
        beta: float = 0.95,
        max_side: int = 10_000,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        defaults = {"period": period, "beta": beta, "max_side": max_side}
        super().__init__(modules, project_update, project_params, project_grad, defaults)

    def check(self, settings: Settings) -> None:
        require(self, "period", settings["period"], minimum=1)
        require(self, "beta", settings["beta"], minimum=0, below=1)
        require(self, "max_side", settings["max_side"], minimum=1)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        matrix = tensor.ndim == 2 and tensor.is_floating_point()
        return matrix and max(tensor.shape) <= settings["max_side"]

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        dtype = torch.promote_types(tensor.dtype, torch.float32)  # eigh knows no bfloat16
        left, right = (torch.eye(side, dtype=dtype, device=tensor.device) for side in tensor.shape)
        return {
            "step": 0,
            "left": left,  # (m, m)
            "right": right,  # (n, n)
            "left_average": torch.zeros_like(left),
            "right_average": torch.zeros_like(right),
        }

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            times(state["left"].mT, tensor, state["right"])
            for tensor, state in zip(tensors, states, strict=True)
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            times(state["left"], tensor, state["right"].mT)
            for tensor, state in zip(projected_tensors, states, strict=True)
        ]

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries | None] | None:
        if first_nonfinite(tensors) is not None:
            raise NonFiniteError(
                "Kronecker was to learn from an update in which there is Inf or NaN. A basis is "
                "made of finite numbers. Leave this step out."
            )
        new: list[Entries | None] = []
        for tensor, state, values in zip(tensors, states, settings, strict=True):
            due = state["step"] > 0 and state["step"] % values["period"] == 0
            new.append(eigenbases(state) if due else None)
            matrix = tensor.to(state["left"].dtype)
            for name, square in (
                ("left_average", matrix @ matrix.mT),
                ("right_average", matrix.mT @ matrix),
            ):
                state[name] = torch.lerp(square, state[name], values["beta"])
            state["step"] += 1
        return new if any(new) else None

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> Iterable[Tensor] | None:
        if kind != "second":
            return super().transport(tensors, kind, params, old_states, new_states, settings)
        return [
            times(
                (new["left"].mT @ old["left"]).square(),
                tensor,
                (old["right"].mT @ new["right"]).square(),
            )
            for tensor, old, new in zip(tensors, old_states, new_states, strict=True)
        ]


def times(left: Tensor, tensor: Tensor, right: Tensor) -> Tensor:
    """Returns the product of three matrices, made in the dtype of the outer ones."""
    return (left @ tensor.to(left.dtype) @ right).to(tensor.dtype)


def eigenbases(state: Entries) -> Entries:
    """Returns the eigenvectors of the averages, as columns."""
    return {
        "left": torch.linalg.eigh(state["left_average"]).eigenvectors,
        "right": torch.linalg.eigh(state["right_average"]).eigenvectors,
    }
