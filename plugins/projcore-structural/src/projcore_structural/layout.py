"""Merging tensors into a vector, and splitting them into scalars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Planner, ProjectionBase, Rules, Settings, Space
from projcore.errors import ArgumentError
from projcore_structural._parts import Parted, alike, choose

BY = ("all", "group", "dtype")


def merge(tensors: list[Tensor], owner: str) -> Tensor:
    """Concatenates the elements of tensors into one vector, in row-major order.

    Raises:
        ArgumentError: If they differ in dtype or device.
    """
    for what in ("dtype", "device"):
        found = list(dict.fromkeys(str(getattr(tensor, what)) for tensor in tensors))
        if len(found) > 1:
            raise ArgumentError(
                f"{owner} was given tensors of several {what}s: {', '.join(found)}. They are "
                f"merged into one tensor, which has one {what}. Convert them with "
                f"To([{owner}(...)], dtype=..., device=...), or use an optimizer for each."
            )
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Undoes `merge`: returns views of the vector with the shapes of `like`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


class VectorProjection(Parted):
    r"""Runs modules on the concatenation of all tensors, or on one for each part.

    For :math:`x_1, \dots, x_k` of :math:`n_1, \dots, n_k` elements, there is one tensor inside, of
    shape :math:`(n_1 + \dots + n_k,)`, with the elements in row-major order. The map is a
    permutation: lossless, linear, orthonormal. A module that acts on single tensors, such as a norm
    or an orthogonalization, thus acts on all parameters together. An elementwise module gives the
    same result as outside, so it runs there and its state stays with each parameter.

    A parameter without a gradient counts as a zero gradient in the vector, and is not changed.

    Args:
        modules: The modules to run on the vector, or on all vectors.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.
        by: How tensors are divided into vectors: ``"all"`` for one vector, ``"group"`` for one per
            parameter group, ``"dtype"`` for one per dtype and device, or a list of rules by name
            and shape (``["*.bias", "ndim==2", "*"]``, see `projcore.Rules`) for one per rule, where
            the first match counts.

    Raises:
        ArgumentError: If tensors of one vector differ in dtype or device (merge them ``by="dtype"``
            or inside `To`); if `by` is invalid; when the optimizer is built, if a tensor matches no
            rule, or a rule no tensor.

    Cost: one copy of the update on the way in, none on the way out; elementwise modules cost
    nothing extra.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LBFGS, StrongWolfe
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), VectorProjection([LBFGS(), StrongWolfe()]))

        Clip the norm of all biases together, and that of all weights:

        >>> inner = VectorProjection(["clip_norm(1.0, per_tensor=True)"], by=["*.bias", "*"])
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4))
        >>> optimizer = Optimizer(model.named_parameters(), inner, "lr(0.1)")

    References:
        torchzero's `VectorProjection` has the same interface, without `by`.
    """

    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
        by: str | Sequence[str] = "all",
    ) -> None:
        if isinstance(by, str) and by not in BY:
            raise ArgumentError(
                f"VectorProjection was given by={by!r}. It must be one of "
                f"{', '.join(map(repr, BY))}, or a list of rules. If it is a rule, pass "
                f"[{by!r}, '*']."
            )
        self.by = by if isinstance(by, str) else "rules"
        self.rules = None if isinstance(by, str) else Rules(by, "VectorProjection")
        super().__init__(modules, project_update, project_params, project_grad)

    def parts(self, planner: Planner, space: Space) -> Sequence[int] | None:
        """Returns the index of each tensor's vector, if it follows from groups or names."""
        if self.rules is not None:
            return choose(planner, self.rules, space)
        if self.by != "group":
            return None
        numbers = {group: i for i, group in enumerate(dict.fromkeys(space.groups))}
        return [numbers[group] for group in space.groups]

    def origins(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings], projected: int
    ) -> list[list[int]]:
        if self.by == "dtype":
            return alike(params, lambda param: None)
        vectors: dict[int, list[int]] = {}
        for i, number in enumerate(self.numbers(params, states, self.rules)):
            vectors.setdefault(number, []).append(i)
        return list(vectors.values())

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        given = list(tensors)
        return [
            merge([given[i] for i in vector], "VectorProjection")
            for vector in self.origins(params, states, settings, 0)
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        result: dict[int, Tensor] = {}
        vectors = self.origins(params, states, settings, 0)
        for indices, vector in zip(vectors, projected_tensors, strict=True):
            pieces = split(vector, [params[i] for i in indices])
            result.update(zip(indices, pieces, strict=True))
        return [result[i] for i in range(len(params))]


class ScalarProjection(ProjectionBase):
    r"""Runs modules on individual scalars: each element of each tensor is a tensor.

    For :math:`n` elements in total there are :math:`n` 0-d tensors inside, in one stack of shape
    :math:`(n,)` whose entries are independent tensors (``batch_dims`` is 1). A module that acts on
    single tensors acts on each scalar, in one call for all of them: `Normalize` becomes a sign.
    Elementwise modules run outside, on the parameters, at no cost.

    Args:
        modules: The modules to run on each scalar.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If tensors differ in dtype or device; merge them inside `To`.

    Cost: as `VectorProjection`. A module of scope ``"tensor"`` that does not support batches runs
    once for each scalar, which is slow.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Normalize
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Optimizer([weight], ScalarProjection([Normalize()]), LR(0.5))
        >>> weight.grad = torch.tensor([3.0, -4.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.5000, 2.5000])

    References:
        torchzero's `ScalarProjection` has the same interface, and makes a tensor for each element.
    """

    geometry = "layout"
    batch_dims = 1

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        super().__init__(modules, project_update, project_params, project_grad)

    def project(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        return [merge(list(tensors), "ScalarProjection")]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        (batch,) = projected_tensors
        return split(batch, params)
