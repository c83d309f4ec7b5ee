"""Dion2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import require_choice
from projcore_adaptive._matrices import Folding, as_matrices, batches, matrix_shape
from projcore_adaptive.muon import AdjustLR, adjustment
from projcore_adaptive.orthogonalize import (
    BATCH,
    COEFFICIENTS,
    CPU_BATCH,
    Coefficients,
    Dtype,
    Method,
    Orthogonalizer,
)


def largest_rows(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the rows of the largest sums of magnitudes, and their indices.

    Args:
        matrices: Shape ``(..., m, n)``.
        count: The number of rows, `k`.

    Returns:
        The rows, shape ``(..., k, n)``, and their indices, shape ``(..., k, 1)``.
    """
    sums = torch.linalg.vector_norm(matrices, 1, dim=-1)  # (..., m)
    places = sums.topk(count, dim=-1, sorted=False).indices.unsqueeze(-1)
    return matrices.gather(-2, places.expand(*places.shape[:-1], matrices.shape[-1])), places


class Dion2(Transform):
    r"""Orthogonalizes the largest rows of the momentum, and keeps accumulating the others.

    For a matrix :math:`u` of shape ``(m, n)``, :math:`m \le n`, and :math:`S` the
    :math:`\lceil \alpha m \rceil` rows of :math:`b` with the largest sums of magnitudes,

    .. math::
        b \leftarrow b + u, \qquad
        u \leftarrow s \cdot \begin{cases} \operatorname{orthogonalize}(b_S) & \text{in rows } S \\
        0 & \text{elsewhere} \end{cases}, \qquad
        b_S \leftarrow \mu\, b_S

    and likewise with columns for a matrix of more rows than columns. Rows that are not among the
    largest accumulate until they are: that is error feedback, and only the rows that were used
    decay by :math:`\mu`. The factor :math:`s` and the arguments from ``adjust_lr_fn`` on are those
    of `Muon`, except for decay, which is left to `WeightDecay`: ``Dion2(), WeightDecay(0.01),
    LR(0.01)``. As with `Muon`, use `AdamW` for embeddings, heads, biases and norms, and complex
    tensors raise an error.

    Args:
        fraction: :math:`\alpha`, above 0 and at most 1; fixed: parameter groups cannot override it.
        momentum: :math:`\mu`, at least 0 and at most 1.
        adjust_lr_fn: ``"original"`` or ``"match_rms_adamw"``; fixed.
        method: ``"newton_schulz"`` or ``"svd"``; fixed.
        ns_coefficients: The coefficients of the Newton-Schulz polynomial, or those of each step, or
            ``"polar_express"``, as in the authors' code; fixed.
        ns_steps: The number of Newton-Schulz steps; fixed.
        eps: The lower bound of the norm by which a matrix is divided; fixed.
        dtype: The dtype of Newton-Schulz; None for that of the tensor; fixed.
        flatten: Whether to flatten other tensors to matrices; fixed.
        folding: ``"fold"`` or ``"last2"``, for stacks of matrices; a setting.

    Raises:
        ArgumentError: If a setting is out of range or unknown; when the optimizer is built, if a
            tensor is complex, or is not a matrix and neither ``flatten`` nor ``folding`` makes one
            of it.
        ArgumentTypeError: If ``ns_coefficients`` are not triples, or ``ns_steps`` is not an
            integer.

    Cost: one state tensor per parameter. Newton-Schulz on :math:`\alpha m` rows takes a fraction
    :math:`\alpha^2` of the operations of `Muon`; the sums of magnitudes and the copies are passes
    over the momentum. Matrices of equal shape, up to transposition, are batched; on the CPU, small
    ones only. Differs from the authors' code: it has :math:`s = \sqrt{m / n}` also for matrices of
    fewer rows than columns, where ``"original"`` has 1.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, WeightDecay
        >>> model = torch.nn.Linear(30, 20, bias=False)
        >>> optimizer = Optimizer(model.parameters(), Dion2(), WeightDecay(0.01), LR(0.01))

    References:
        Ahn et al., 2025, https://arxiv.org/abs/2512.16928 (algorithm 1).
    """

    scope = "tensor"
    kinds = {"momentum_buffer": "first"}

    def __init__(
        self,
        fraction: float = 0.25,
        momentum: float = 0.95,
        adjust_lr_fn: AdjustLR = "original",
        method: Method = "newton_schulz",
        ns_coefficients: Coefficients = COEFFICIENTS,
        ns_steps: int = 5,
        eps: float = 1e-7,
        dtype: Dtype | None = "bfloat16",
        flatten: bool = False,
        folding: Folding = "fold",
    ) -> None:
        require(self, "fraction", fraction, above=0, maximum=1)
        require_choice(self, "adjust_lr_fn", adjust_lr_fn, AdjustLR)
        self.fraction = fraction
        self.adjust_lr_fn: AdjustLR = adjust_lr_fn
        self.orthogonalizer = Orthogonalizer(
            "Dion2", method, ns_coefficients, ns_steps, eps, dtype, flatten
        )
        self.orthogonalizer.check(self)
        super().__init__({"momentum": momentum, "folding": folding})

    def check(self, settings: Settings) -> None:
        require(self, "momentum", settings["momentum"], minimum=0, maximum=1)
        require_choice(self, "folding", settings["folding"], Folding)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        self.orthogonalizer.accept(tensor, batch_dims, settings["folding"])
        return {"momentum_buffer": torch.zeros_like(tensor)}

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
        momentum = scalar(settings[0]["momentum"])
        buffers = [state["momentum_buffer"] for state in states]
        torch._foreach_add_(buffers, tensors)
        shapes = [
            matrix_shape(tensor.shape, batch_dims, settings[0]["folding"]) for tensor in tensors
        ]
        tall = [shape.rows > shape.columns for shape in shapes]
        wide = [
            matrix.mT if transposed else matrix
            for matrix, transposed in zip(as_matrices(buffers, shapes), tall, strict=True)
        ]
        decays, update = list(buffers), list(buffers)
        most = CPU_BATCH if tensors[0].device.type == "cpu" else BATCH
        for places in batches(wide, [matrix.shape for matrix in wide], most):
            steps, factors = self.steps(torch.stack([wide[i] for i in places]), momentum)
            for i, step, factor in zip(places, steps, factors, strict=True):
                if tall[i]:
                    step, factor = step.mT, factor.mT
                update[i] = step.reshape(tensors[i].shape)
                decays[i] = factor.expand(step.shape).reshape(tensors[i].shape)
        torch._foreach_mul_(buffers, decays)
        scales = [adjustment(shape.rows, shape.columns, self.adjust_lr_fn) for shape in shapes]
        torch._foreach_mul_(update, scales)
        return update

    def steps(self, momenta: Tensor, momentum: float | Tensor) -> tuple[Tensor, Tensor]:
        """Returns updates, and the factors by which the momenta are multiplied afterwards.

        Args:
            momenta: Shape ``(..., m, n)``; it is overwritten.
            momentum: The factor for the rows that are used.

        Returns:
            The updates, of the same shape, and factors, shape ``(..., m, 1)``.
        """
        count = math.ceil(self.fraction * momenta.shape[-2])
        rows, places = largest_rows(momenta, count)
        flat = rows.flatten(0, -3)  # a batch of one dimension
        results = self.orthogonalizer.direct(flat).reshape(rows.shape)
        used = momenta.new_ones(places.shape) * momentum
        factors = momenta.new_ones((*momenta.shape[:-1], 1)).scatter_(-2, places, used)
        return momenta.zero_().scatter_(-2, places.expand(rows.shape), results), factors
