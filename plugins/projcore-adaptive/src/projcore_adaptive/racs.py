"""Row and column scaled SGD."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Node, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import lerp_, refuse_complex, require_choice
from projcore_adaptive._matrices import Folding, as_matrices, batches, matrix_shape

# Elements whose squares are in memory at once, or one matrix. On the CPU large matrices are faster
# one by one, and elsewhere this bounds what a step needs beside the state.
CPU_BATCH = 1 << 16
BATCH = 1 << 26


def rank_one_factors(squares: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    r"""Returns vectors `q` and `s` whose product is near each matrix of squares, by iteration.

    From `q = 1`, each iteration is two least-squares problems, one vector held fixed:
    :math:`s = P^\top q / \lVert q \rVert^2`, then :math:`q = P s / \lVert s \rVert^2`. That is the
    power method for the largest singular value, whose vectors have no negative elements.

    Args:
        squares: `P`, shape ``(..., m, n)``, not negative.
        iterations: How many, at least 1.

    Returns:
        `q`, shape ``(..., m, 1)``, and `s`, shape ``(..., 1, n)``; zeros where `P` is zero.
    """
    tiny = torch.finfo(squares.dtype).tiny
    count = max(1, squares.shape[-2] * squares.shape[-1])
    # Squares of small numbers would have squares that are zero: `s` is computed in units of this.
    unit = (squares.sum((-2, -1), keepdim=True) / count).clamp_(min=tiny)
    q = squares.new_ones((*squares.shape[:-1], 1))
    s = squares.new_zeros((*squares.shape[:-2], 1, squares.shape[-1]))
    for _ in range(iterations):
        s = (q.mT @ squares) / (unit * (q.mT @ q)).clamp_(min=tiny)
        q = (squares @ s.mT) / (unit * (s @ s.mT)).clamp_(min=tiny)
    return q, s * unit


def squared(matrices: list[Tensor]) -> Tensor:
    """Returns the squares of matrices of one shape, as a new stack, in 32 bits at least."""
    dtype = torch.promote_types(matrices[0].dtype, torch.float32)
    size = (len(matrices), *matrices[0].shape)
    squares = torch.empty(size, dtype=dtype, device=matrices[0].device)
    torch._foreach_copy_(list(squares.unbind()), matrices)
    return squares.square_()


def scaled(tensors: list[Tensor], rows: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
    """Returns matrices divided by the roots of factors of their rows and of their columns."""
    least = torch.finfo(rows[0].dtype).tiny  # where a factor is 0, so is the element
    inverse = [torch._foreach_clamp_min(factors, least) for factors in (rows, columns)]
    for factors in inverse:
        torch._foreach_rsqrt_(factors)
    result = torch._foreach_mul(tensors, inverse[0])
    torch._foreach_mul_(result, inverse[1])
    return list(result)


class RACS(Transform):
    r"""Divides the rows and the columns of each matrix by factors, of which it keeps running means.

    For a matrix :math:`u` of shape ``(m, n)``, from :math:`\hat q = 1` and ``iterations`` times,

    .. math::
        \hat s \leftarrow \frac{(u^2)^\top \hat q}{\lVert \hat q \rVert^2}, \qquad
        \hat q \leftarrow \frac{u^2\, \hat s}{\lVert \hat s \rVert^2}

    which makes :math:`\hat q \hat s^\top` the matrix of rank 1 nearest to the squares. Then, with
    `q` and `s` zero before the first step,

    .. math::
        q \leftarrow \beta q + (1 - \beta) \hat q, \quad
        s \leftarrow \beta s + (1 - \beta) \hat s, \quad
        u_{ij} \leftarrow \frac{u_{ij}}{\sqrt{q_i s_j}}

    Elements of the result are near 1, as Adam's are, for the memory of a vector for each side. In
    the first steps they are :math:`1 / (1 - \beta^t)` times as long, since the means are not
    corrected for having begun at zero. The published optimizer has no momentum, limits the growth
    of the norm, and takes a twentieth of the result, at most, with a learning rate of 0.02:
    ``RACS(), NormGrowthLimiter(1.01), Scale(0.05), LR(0.02)``. The recipe `racs_adamw` is that, and
    Adam for what are no matrices.

    A vector is a matrix of one row, and keeps as many numbers as it has. Complex tensors are
    refused. Where an outer projection changes its basis memory starts afresh, because factors of
    rows and columns do not carry over.

    Args:
        beta: :math:`\beta`, at least 0 and less than 1.
        iterations: At least 1; fixed, groups do not change it.
        folding: What a tensor of more than two dimensions is: a matrix of its first by all others
            (``"fold"``), or a stack of matrices of its last two (``"last2"``), as the experts of a
            mixture are; a setting.

    Raises:
        ArgumentError: If an argument is out of range or unknown, or a tensor is complex.
        ArgumentTypeError: If ``iterations`` is no integer.

    Cost: memory of ``m + n`` numbers for a matrix, 32 bits at least. ``2 * iterations + 4`` passes
    over squares, which are there for a batch of matrices of equal shape at a time.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, NormGrowthLimiter, Scale
        >>> model = torch.nn.Linear(30, 20, bias=False)
        >>> modules = RACS(), NormGrowthLimiter(1.01), Scale(0.05), LR(0.02)
        >>> optimizer = Optimizer(model.parameters(), *modules)
        >>> optimizer.memory().state  # 20 + 30 numbers and a norm, of 4 bytes
        204

    References:
        Gong et al., 2025, https://arxiv.org/abs/2502.07752 (algorithm 1, lines 5 to 8; equation
        16). Its limiter and scale are modules of their own.
    """

    scope = "tensor"
    kinds = {"row_scale": "opaque", "column_scale": "opaque"}

    def __init__(self, beta: float = 0.9, iterations: int = 5, folding: Folding = "fold") -> None:
        require(self, "iterations", iterations, minimum=1)
        if not isinstance(iterations, int):
            raise ArgumentTypeError(
                f"RACS(iterations={iterations!r}) was given a {type(iterations).__name__}. "
                "iterations counts iterations. Pass an integer."
            )
        self.iterations = iterations
        super().__init__({"beta": beta, "folding": folding})

    def check(self, settings: Settings) -> None:
        require(self, "beta", settings["beta"], minimum=0, below=1)
        require_choice(self, "folding", settings["folding"], Folding)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        leading, rows, columns = matrix_shape(tensor.shape, batch_dims, settings["folding"])
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return {
            "row_scale": tensor.new_zeros((*leading, rows, 1), dtype=dtype),
            "column_scale": tensor.new_zeros((*leading, 1, columns), dtype=dtype),
        }

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        folding = settings[0]["folding"]
        shapes = [matrix_shape(tensor.shape, batch_dims, folding) for tensor in tensors]
        matrices = as_matrices(tensors, shapes)
        row_factors, column_factors = list(matrices), list(matrices)
        most = CPU_BATCH if tensors[0].device.type == "cpu" else BATCH
        for places in batches(tensors, shapes, most):
            squares = squared([matrices[i] for i in places])
            rows, columns = rank_one_factors(squares, self.iterations)
            del squares  # before those of the next batch are made
            for i, row, column in zip(places, rows, columns, strict=True):
                row_factors[i], column_factors[i] = row, column
        row_scales = [state["row_scale"] for state in states]
        column_scales = [state["column_scale"] for state in states]
        weight = 1 - scalar(settings[0]["beta"])
        lerp_(row_scales, row_factors, weight)
        lerp_(column_scales, column_factors, weight)
        return [
            each.reshape(tensor.shape).to(tensor.dtype)
            for each, tensor in zip(
                scaled(matrices, row_scales, column_scales), tensors, strict=True
            )
        ]
