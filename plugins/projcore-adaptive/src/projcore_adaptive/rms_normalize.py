"""Rows or columns divided by their root mean squares."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentError
from projcore.ops import (
    norms,
    norms_over,
    prefers_stacks,
    refuse_complex,
    require_choice,
    slices,
    stack,
    stacked,
    unstacked,
)
from projcore_adaptive._matrices import Folding, as_matrices, batches, matrix_shape
from projcore_adaptive._norms import mean_squares

Length = float | Literal["keep"] | None
BATCH = 1 << 29  # elements of one tensor that holds the results for several matrices


class RMSNormalize(Transform):
    r"""Divides each row or column of a matrix by its root mean square, current or averaged.

    For the rows of a matrix :math:`u` of shape ``(m, n)``, with :math:`v` zero before the first
    step,

    .. math::
        v_i \leftarrow \beta v_i + (1 - \beta) \frac1n \sum_j u_{ij}^2, \qquad
        \hat u_{ij} = \frac{u_{ij}}{\sqrt{v_i} + \epsilon}, \qquad
        u \leftarrow c\, \hat u

    where :math:`c` rescales the whole matrix to the norm of the update (``rms="keep"``), or to a
    given root mean square; with ``rms=None`` it is 1. After `Muon` it equalizes the step lengths of
    neurons:

    ==================================================================  ==========================
    chain                                                               is
    ==================================================================  ==========================
    ``Muon(weight_decay=0), RMSNormalize(0.95), WeightDecay(w), LR(r)``  NorMuon, by its code
    the same with ``rms=0.2``                                           NorMuon, by its paper
    ``Muon(weight_decay=0), RMSNormalize(0, dim=0), RMSNormalize(0)``   Muon+ (columns, then rows),
                                                                        with the norm of Muon
    ``RMSNormalize(0, rms=None), LR(r)``                                SCALE, for hidden layers
    ==================================================================  ==========================

    A vector is a matrix of one row. Complex tensors raise an error. When an outer projection
    changes its basis, the state is reinitialized, because row means cannot be transported.

    Args:
        beta: :math:`\beta`, at least 0 and less than 1. With 0 only the current update counts.
        dim: The dimension over which means are taken, as in `Normalize`: 1 for rows, 0 for columns;
            fixed: parameter groups cannot override it.
        rms: ``"keep"``, a number above 0, or None; fixed.
        eps: :math:`\epsilon`, at least 0. A row of zeros stays zero even with 0.
        folding: How to treat tensors of more than two dimensions: as a matrix of the first by all
            other dimensions (``"fold"``), or as a stack of matrices of the last two (``"last2"``),
            as for the experts of a mixture; a setting.
        transposed: Whether matrices are stored as inputs by outputs, so that rows and columns
            change places, as for GPT-2's ``Conv1D``; a setting.

    Raises:
        ArgumentError: If an argument is out of range or unknown, or a tensor is complex.

    Cost: one number of state per row. Two passes over the update.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Optimizer([weight], RMSNormalize(0.0, rms=None), LR(1.0))
        >>> weight.grad = torch.tensor([[1.0, -1.0], [0.0, 20.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-1.0000,  1.0000],
                [ 0.0000, -1.4142]])

    References:
        Li et al., 2025, https://arxiv.org/abs/2510.05491 (NorMuon, algorithm 1; there the result
        has a root mean square of 0.2, and in the authors' code the norm that it had).
        Zhang et al., 2026, https://arxiv.org/abs/2602.21545 (Muon+, equations 3 to 8; there rows
        have norm 1).
        Glentis et al., 2025, https://arxiv.org/abs/2506.16659 (SCALE; the root mean square in place
        of the norm is its code's).
    """

    scope = "tensor"
    kinds = {"mean_square": "opaque"}

    def __init__(
        self,
        beta: float = 0.95,
        dim: int = 1,
        rms: Length = "keep",
        eps: float = 1e-8,
        folding: Folding = "fold",
        transposed: bool = False,
    ) -> None:
        if isinstance(rms, str):
            require_choice(self, "rms", rms, ("keep",))
        elif rms is not None:
            require(self, "rms", rms, above=0)
        if dim not in (0, 1):
            raise ArgumentError(
                f"RMSNormalize(dim={dim!r}) is not a dimension of a matrix. Pass 1 to normalize "
                "rows, or 0 to normalize columns."
            )
        self.rms: Length = rms
        self.dim = dim
        defaults = {"beta": beta, "eps": eps, "folding": folding, "transposed": transposed}
        super().__init__(defaults)

    def check(self, settings: Settings) -> None:
        require(self, "beta", settings["beta"], minimum=0, below=1)
        require(self, "eps", settings["eps"], minimum=0)
        require_choice(self, "folding", settings["folding"], Folding)
        require_choice(self, "transposed", settings["transposed"], (True, False))

    def along(self, settings: Settings) -> int:
        """Returns the dimension of a matrix over which means are taken, from the last."""
        return -1 if (self.dim == 1) != settings["transposed"] else -2

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        leading, rows, columns = matrix_shape(tensor.shape, batch_dims, settings["folding"])
        shape = (*leading, rows, 1) if self.along(settings) == -1 else (*leading, 1, columns)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return {"mean_square": tensor.new_zeros(shape, dtype=dtype)}

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
        values = settings[0]
        shapes = [matrix_shape(tensor.shape, batch_dims, values["folding"]) for tensor in tensors]
        given = as_matrices(tensors, shapes)
        runs = slices(given)
        matrices = [
            stack([given[i] for i in run]) if len(run) > 1 else given[run[0]] for run in runs
        ]
        along = [(self.along(values),)] * len(matrices)
        averages = [state["mean_square"] for state in states]
        means = stacked(averages, runs)
        now = mean_squares(matrices, along)
        wide = [each.to(mean.dtype) for each, mean in zip(now, means, strict=True)]
        beta = scalar(values["beta"])
        torch._foreach_mul_(means, beta)
        torch._foreach_add_(means, torch._foreach_mul(wide, 1 - beta))
        if len(runs) < len(averages):
            torch._foreach_copy_(averages, unstacked(means, runs))
        divisors = list(torch._foreach_sqrt(means))
        torch._foreach_add_(divisors, scalar(values["eps"]))
        clamp_positive_(divisors)
        if self.rms is not None:
            self.resize_(divisors, list(torch._foreach_sqrt(wide)))
        update = unstacked(quotients(matrices, divisors), runs)
        return [
            each.reshape(tensor.shape).to(tensor.dtype)
            for each, tensor in zip(update, tensors, strict=True)
        ]

    def resize_(self, divisors: list[Tensor], lengths: list[Tensor]) -> None:
        """Multiplies divisors by a factor for each matrix, for the requested root mean square.

        Args:
            divisors: The divisors of the rows.
            lengths: The root mean squares of the rows; from them, the norm of a matrix is that of
                its rows divided by the root of their number of elements.
        """
        factors = matrix_norms(list(torch._foreach_div(lengths, divisors)))
        if isinstance(self.rms, str):
            given = matrix_norms(lengths)
            clamp_positive_(given)
            torch._foreach_div_(factors, given)
        elif self.rms is not None:
            sizes = [self.rms * math.sqrt(math.prod(each.shape[-2:])) for each in lengths]
            torch._foreach_div_(factors, sizes)
        torch._foreach_mul_(divisors, factors)
        clamp_positive_(divisors)


def quotients(matrices: list[Tensor], divisors: list[Tensor]) -> list[Tensor]:
    """Returns matrices divided by what broadcasts to them.

    On accelerators the results are contiguous, so that lists of them and of parameters take one
    launch, and those of one shape are slices of one tensor.
    """
    if not prefers_stacks(matrices[0]):
        return list(torch._foreach_div(matrices, divisors))
    results = list(matrices)
    for places in batches(matrices, [each.shape for each in matrices], BATCH):
        first = matrices[places[0]]
        for i, result in zip(places, first.new_empty(len(places), *first.shape), strict=True):
            results[i] = torch.div(matrices[i], divisors[i], out=result)
    return results


def matrix_norms(matrices: list[Tensor]) -> list[Tensor]:
    """Returns the norm of each matrix, which broadcasts."""
    if all(each.ndim == 2 for each in matrices):
        return norms(matrices)
    return norms_over(matrices, 2.0, [(each.ndim - 2, each.ndim - 1) for each in matrices])


def clamp_positive_(tensors: list[Tensor]) -> None:
    """Raises elements to the smallest normal number, by which zero divided is zero."""
    torch._foreach_clamp_min_(tensors, torch.finfo(tensors[0].dtype).tiny)
