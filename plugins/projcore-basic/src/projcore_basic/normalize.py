"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, common, require
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import by_kind, by_parts, norms, norms_over, require_choice
from projcore_basic._norms import (
    Nonfinite,
    Order,
    as_order,
    refuse_nonfinite,
    whole_norm,
)


def slice_norms(
    tensors: list[Tensor], order: float, dims: tuple[int, ...], batch_dims: int
) -> list[Tensor]:
    """Returns the norms of each item over some dimensions."""
    return norms_over(tensors, order, [places(each.ndim, dims, batch_dims) for each in tensors])


def as_dims(dim: int | Sequence[int]) -> tuple[int, ...]:
    """Returns dimensions as a tuple; raises unless they are integers, at least one."""
    dims = tuple(dim) if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    if not dims or any(isinstance(each, bool) or not isinstance(each, int) for each in dims):
        raise ArgumentTypeError(
            f"Normalize(dim={dim!r}) was given a {type(dim).__name__}. It takes an integer or "
            "several. Pass for example dim=1, or None for all dimensions."
        )
    return dims


def places(ndim: int, dims: tuple[int, ...], batch_dims: int) -> tuple[int, ...]:
    """Returns dimensions of an item as those of the batch; all, if it lacks one of them."""
    count = ndim - batch_dims
    if any(not -count <= dim < count for dim in dims):
        return tuple(range(batch_dims, ndim))
    return tuple({batch_dims + dim % count for dim in dims})


def at_least(norms: list[Tensor], eps: float | Tensor) -> list[Tensor]:
    """Returns the norms, clamped from below."""
    tiny = torch.finfo(norms[0].dtype).tiny  # eps may be 0 in dtypes such as float16
    if isinstance(eps, Tensor):
        return [norm.clamp_min(eps).clamp_min(tiny) for norm in norms]
    return list(torch._foreach_clamp_min(norms, max(eps, tiny)))


class Normalize(Transform):
    r"""Scales the update to unit norm: :math:`u \leftarrow u / \max(\lVert u \rVert, \epsilon)`.

    It normalizes each tensor, all tensors together, or with ``dim`` each row, column or other slice
    of a tensor. Inside `ScalarProjection`, where each element is a tensor, it returns the sign.

    Args:
        ord: The order of the norm, greater than 0, or ``"inf"`` for the largest magnitude; fixed:
            parameter groups cannot override it.
        eps: :math:`\epsilon`, greater than 0: the lower bound of the divisor.
        per_tensor: Whether to divide each tensor by its own norm; otherwise by the norm of all
            tensors together.
        dim: The dimension or dimensions over which a norm is taken, as in torch; None for all. For
            a matrix, 1 normalizes rows and 0 columns. A tensor that lacks one of them is normalized
            as a whole. Fixed: parameter groups cannot override it.
        nonfinite: The treatment of Inf and NaN in a norm: with ``"allow"`` Inf turns finite
            elements into zeros and infinite ones into NaN, ``"raise"`` raises an error, and
            ``"skip"`` skips the step, with nothing changed. Fixed. Put the module first, since
            modules before it may already have updated their state. Unless it is ``"allow"``, the
            module waits for the device and is not compiled.

    Raises:
        ArgumentError: If ``ord`` or ``eps`` is out of range, ``nonfinite`` is unknown, or ``dim``
            is given without ``per_tensor``.
        ArgumentTypeError: If ``dim`` is neither an integer nor a sequence of integers.
        NonFiniteError: In a step, if a norm is not finite and ``nonfinite="raise"``.

    Cost: two passes over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Optimizer([weight], Normalize(), LR(1.0))
        >>> weight.grad = torch.tensor([30.0, -40.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.6000,  0.8000])

    References:
        `torch.nn.functional.normalize` has the same formula and the same ``eps``.
        Hazan, Levy & Shalev-Shwartz, 2015, https://arxiv.org/abs/1507.02030 (algorithm 1).
    """

    sharded = True

    def __init__(
        self,
        ord: Order = 2.0,
        eps: float = 1e-12,
        per_tensor: bool = True,
        dim: int | Sequence[int] | None = None,
        nonfinite: Nonfinite = "allow",
    ) -> None:
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        self.nonfinite: Nonfinite = nonfinite
        self.traceable = nonfinite == "allow"
        self.order = as_order(self, "ord", ord)
        self.dims = None if dim is None else as_dims(dim)
        if self.dims is not None and not per_tensor:
            raise ArgumentError(
                f"Normalize(dim={dim!r}, per_tensor=False) is contradictory: dim is a dimension of "
                "each tensor. Leave out one of the two."
            )
        self.scope = "tensor" if per_tensor else "all"
        super().__init__({"eps": eps})

    def check(self, settings: Settings) -> None:
        require(self, "eps", settings["eps"], above=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        if self.scope == "all":
            found = [whole_norm(tensors, self.order)]
            refuse_nonfinite(self, found, self.nonfinite)
            (norm,) = at_least(found, common(self, settings)["eps"])
            return by_kind(lambda some: torch._foreach_div(some, norm.to(some[0].device)), tensors)
        if self.dims is None:
            found = norms(tensors, batch_dims, self.order)
        else:
            found = slice_norms(tensors, self.order, self.dims, batch_dims)
        refuse_nonfinite(self, found, self.nonfinite)
        return by_parts(torch._foreach_div, tensors, at_least(found, settings[0]["eps"]))
