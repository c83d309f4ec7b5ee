"""Row and column scaled SGD."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import lerp_, refuse_complex, require_choice
from projcore_adaptive._matrices import Folding, as_matrices, batches, matrix_shape

# The largest number of elements of matrices that are stacked, or one matrix. On the CPU large
# matrices are faster one by one, and elsewhere this bounds the temporaries of a step.
CPU_BATCH = 1 << 16
BATCH = 1 << 28


def rank_one_factors(squares: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    r"""Returns vectors `q` and `s` whose product approximates each matrix of squares.

    From `q = 1`, each iteration is two least-squares problems, one vector held fixed:
    :math:`s = P^\top q / \lVert q \rVert^2`, then :math:`q = P s / \lVert s \rVert^2`. That is the
    power method for the largest singular value, whose vectors have no negative elements.

    Args:
        squares: `P`, shape ``(..., m, n)``, not negative, with means near 1: the squares of small
            squares would underflow.
        iterations: The number of iterations, at least 1.

    Returns:
        `q`, shape ``(..., m, 1)``, and `s`, shape ``(..., 1, n)``; zeros where `P` is zero.
    """
    leading = squares.shape[:-2]
    p = squares.reshape(leading.numel(), *squares.shape[-2:])
    # Added to squared norms, as zero divided by it is zero, and any other norm is far larger.
    least = p.new_full((1, 1, 1), torch.finfo(p.dtype).tiny)
    q = p.new_ones((*p.shape[:-1], 1))
    for _ in range(iterations):
        s = (q.mT @ p).div_(torch.baddbmm(least, q.mT, q))
        q = (p @ s.mT).div_(torch.baddbmm(least, s, s.mT))
    return q.view(*leading, *q.shape[-2:]), s.view(*leading, *s.shape[-2:])


def relative_squares(matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns a stack of the squares of matrices, divided by their means, and the means."""
    squares = stacked(matrices).square_()
    count = max(1, squares.shape[-2] * squares.shape[-1])
    means = squares.sum((-2, -1), keepdim=True).div_(count)
    means.clamp_(min=torch.finfo(squares.dtype).tiny)
    return squares.div_(means), means


def stacked(matrices: list[Tensor]) -> Tensor:
    """Returns matrices of one shape as a new stack, in at least 32 bits."""
    dtype = torch.promote_types(matrices[0].dtype, torch.float32)
    size = (len(matrices), *matrices[0].shape)
    stack = torch.empty(size, dtype=dtype, device=matrices[0].device)
    torch._foreach_copy_(list(stack.unbind()), matrices)
    return stack


def scaled(matrices: list[Tensor], rows: list[Tensor], columns: list[Tensor]) -> Tensor:
    """Returns a stack of matrices, divided by the roots of their row and column factors."""
    stack = stacked(matrices)
    least = torch.finfo(stack.dtype).tiny  # where a factor is 0, the element is, too
    for factors in (rows, columns):
        stack.mul_(torch.stack(factors).clamp_(min=least).rsqrt_())
    return stack


class RACS(Transform):
    r"""Divides rows and columns of each matrix by moving averages of their scales.

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

    Elements of the result are near 1, as with Adam, with only one state vector per dimension. In
    the first steps they are larger by a factor of :math:`1 / (1 - \beta^t)`, since the averages are
    not bias-corrected. The published optimizer has no momentum, limits the growth of the norm, and
    uses a twentieth of the result, at most, with a learning rate of 0.02: ``RACS(),
    NormGrowthLimiter(1.01), Scale(0.05), LR(0.02)``. The recipe `racs_adamw` is this, with Adam for
    other tensors.

    A vector is a matrix of one row, whose state is as large as the vector. Complex tensors raise an
    error. When an outer projection changes its basis, the state is reinitialized, because row and
    column factors cannot be transported.

    Args:
        beta: :math:`\beta`, at least 0 and less than 1.
        iterations: At least 1; fixed: parameter groups cannot override it.
        folding: How to treat tensors of more than two dimensions: as a matrix of the first by all
            other dimensions (``"fold"``), or as a stack of matrices of the last two (``"last2"``),
            as for the experts of a mixture; a setting.

    Raises:
        ArgumentError: If an argument is out of range or unknown, or a tensor is complex.
        ArgumentTypeError: If ``iterations`` is not an integer.

    Cost: ``m + n`` numbers of state per matrix, in at least 32 bits. ``2 * iterations + 5`` passes
    over squares, which are held for one batch of equally shaped matrices at a time.

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
                "iterations must be an integer."
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
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        folding = settings[0]["folding"]
        shapes = [matrix_shape(tensor.shape, batch_dims, folding) for tensor in tensors]
        matrices = as_matrices(tensors, shapes)
        most = CPU_BATCH if tensors[0].device.type == "cpu" else BATCH
        runs = batches(tensors, shapes, most)
        row_scales = [state["row_scale"] for state in states]
        column_scales = [state["column_scale"] for state in states]
        row_factors, column_factors = list(matrices), list(matrices)
        for places in runs:
            squares, means = relative_squares([matrices[i] for i in places])
            rows, columns = rank_one_factors(squares, self.iterations)
            del squares  # before those of the next batch are computed
            columns.mul_(means)
            for i, row, column in zip(places, rows, columns, strict=True):
                row_factors[i], column_factors[i] = row, column
        weight = 1 - scalar(settings[0]["beta"])
        lerp_(row_scales, row_factors, weight)
        lerp_(column_scales, column_factors, weight)
        update = list(tensors)
        for places in runs:
            lists = ([each[i] for i in places] for each in (matrices, row_scales, column_scales))
            for i, made in zip(places, scaled(*lists), strict=True):
                update[i] = made.reshape(tensors[i].shape).to(tensors[i].dtype)
        return update
