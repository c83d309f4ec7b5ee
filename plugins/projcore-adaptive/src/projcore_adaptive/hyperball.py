"""Optimization on spheres: parameters keep their initial norms."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform
from projcore.ops import at_once, norms

FIRST = -1.0  # marks a radius that is not known yet


def hyperball_update(
    tensors: list[Tensor], params: list[Tensor], radii: list[Tensor], batch_dims: int
) -> list[Tensor]:
    """Returns updates that end on the spheres; sets radii that are not known yet.

    Tensors and radii have at least 32 bits.
    """
    lengths = norms(params, batch_dims)
    torch._foreach_copy_(
        radii, at_once(lambda old, new: torch.where(old < 0, new, old), radii, lengths)
    )
    ahead = list(torch._foreach_sub(params, tensors))
    torch._foreach_mul_(ahead, at_once(_factor, radii, norms(ahead, batch_dims)))
    torch._foreach_add_(ahead, params)
    return ahead


def _factor(radius: Tensor, length: Tensor) -> Tensor:
    """Returns the negated factor for each point: -1 for one at zero, or whose radius is zero."""
    return torch.where(torch.minimum(radius, length) > 0, -radius / length, -1.0)


class Hyperball(Transform):
    r"""Keeps each parameter on the sphere of its initial norm.

    With :math:`R` the norm of the parameter :math:`p` before its first step,

    .. math::
        u \leftarrow p - R\, \frac{p - u}{\lVert p - u \rVert}

    It comes last, after the learning rate, since its result must be subtracted unchanged. With
    `TrustRatio`, which scales the update to the norm of the parameter, the learning rate is the
    length of a step relative to the radius, and this is the published method: ``Adam(),
    TrustRatio(), LR(0.01), Hyperball()`` is AdamH, and with `Muon` in place of `Adam` it is MuonH;
    see the recipes `adam_h` and `muon_h`. Weight decay is then of no use.

    It is for matrices that are followed by a normalization, or whose scale does not matter for
    other reasons; the norms of gains and biases must be free to change. The norm is that of the
    whole tensor, even for a stack of matrices. A parameter that is zero before its first step is
    updated without a constraint. If a parameter is loaded or modified, the next step restores its
    initial norm.

    Cost: one number of state per tensor; four passes over the parameters. No synchronization with
    the device.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, TrustRatio
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Optimizer([weight], TrustRatio(), LR(1.0), Hyperball())
        >>> weight.grad = torch.tensor([4.0, -3.0])
        >>> optimizer.step()  # from (3, 4) - (4, -3) back to norm 5
        >>> weight.detach()
        tensor([-0.7071,  4.9497])

    References:
        Wen et al., 2026, https://arxiv.org/abs/2606.16899 (algorithm 1).
    """

    comes_last = True
    scope = "tensor"
    needs = frozenset({"params"})
    kinds = {"radius": "scalar"}

    def __init__(self) -> None:
        super().__init__()

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        sides = len(tensor.shape[batch_dims:]) if batch_dims else 0  # norms of items must broadcast
        shape = (*tensor.shape[:batch_dims], *[1] * sides)
        dtype = torch.promote_types(tensor.dtype, torch.float32).to_real()
        return {"radius": tensor.new_full(shape, FIRST, dtype=dtype)}

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
        assert params is not None
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        result = hyperball_update(
            [tensor.to(wide) for tensor in tensors],
            [param.to(wide) for param in params],
            [state["radius"] for state in states],
            batch_dims,
        )
        return [each.to(tensor.dtype) for each, tensor in zip(result, tensors, strict=True)]
