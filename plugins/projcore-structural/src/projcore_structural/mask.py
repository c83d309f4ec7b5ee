"""Selected elements of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, ProjectionBase, Settings, require
from projcore.errors import ArgumentError


class Mask(ProjectionBase):
    r"""Runs modules on selected elements of each tensor; the others do not change.

    .. math:: z = x_I, \qquad U z = \text{zeros, with } z \text{ at } I

    with :math:`I` the selected elements in row-major order; tensors inside are vectors. The map is
    linear and orthonormal, and drops the other elements. A closure inside is evaluated with the
    other elements at their current values. The selection depends only on the shape of a tensor.

    Args:
        modules: The modules to run on the selected elements.
        triangle: ``"lower"`` or ``"upper"``: those of the triangle of each matrix of the last two
            dimensions, with its diagonal. Tensors of fewer dimensions pass unchanged to the same
            modules.
        every: Instead of a triangle, the elements whose position is a multiple of this, at least 1.
        fraction: Instead of these, a random fraction of the elements, above 0 and at most 1,
            rounded up.
        seed: The seed of the selection by `fraction`.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: Unless exactly one of `triangle`, `every` and `fraction` is given, or if it
            is out of range.

    Cost: 8 bytes for the position of each selected element; one pass each way.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Optimizer([weight], Mask([Adam()], triangle="lower"), LR(1.0))
        >>> weight.grad = torch.ones(2, 2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-1.0000,  0.0000],
                [-1.0000, -1.0000]])
    """

    scope = "tensor"
    kinds = {"index": "opaque"}

    def __init__(
        self,
        modules: Any,
        triangle: Literal["lower", "upper"] | None = None,
        every: int | None = None,
        fraction: float | None = None,
        seed: int = 0,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        given = [value for value in (triangle, every, fraction) if value is not None]
        if len(given) != 1 or triangle not in (None, "lower", "upper"):
            raise ArgumentError(
                f"Mask was given triangle={triangle!r}, every={every!r} and fraction={fraction!r}. "
                "Exactly one must be given; triangle is 'lower' or 'upper'."
            )
        if every is not None:
            require(self, "every", every, minimum=1)
        if fraction is not None:
            require(self, "fraction", fraction, above=0, maximum=1)
        self.triangle = triangle
        self.every = every
        self.fraction = fraction
        self.seed = seed
        super().__init__(modules, project_update, project_params, project_grad)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return self.triangle is None or tensor.ndim >= 2

    def refresh(  # type: ignore[override]  # the choice needs no data
        self, params: list[Tensor], states: list[Entries]
    ) -> list[Entries | None] | None:
        if all("index" in state for state in states):
            return None
        return [
            None if "index" in state else {"index": self.choose(tensor.shape).to(tensor.device)}
            for tensor, state in zip(params, states, strict=True)
        ]

    def choose(self, shape: Sequence[int]) -> Tensor:
        """Returns the positions of the selected elements of a tensor of that shape, in order."""
        count = math.prod(shape)
        if self.triangle is not None:
            ones = torch.ones(shape[-2:], dtype=torch.bool, device="cpu")
            chosen = ones.tril() if self.triangle == "lower" else ones.triu()
            return chosen.expand(*shape).reshape(-1).nonzero().squeeze(1)
        if self.every is not None:
            return torch.arange(0, count, self.every, device="cpu")
        assert self.fraction is not None
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator, device="cpu")
        return order[: math.ceil(self.fraction * count)].sort().values

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return [
            tensor.reshape(-1).index_select(0, state["index"])
            for tensor, state in zip(tensors, states, strict=True)
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return [
            z.new_zeros(param.numel()).index_copy(0, state["index"], z).reshape(param.shape)
            for z, param, state in zip(projected_tensors, params, states, strict=True)
        ]
