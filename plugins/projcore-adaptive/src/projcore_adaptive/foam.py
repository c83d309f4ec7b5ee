"""FOAM: Adam's moments of block means, and a residual that enters both."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import add_squares_, lerp_, once, refuse_complex
from projcore_adaptive._betas import require_betas


class FOAM(Transform):
    r"""Adam with moments of block means; the residual enters both moments in each step.

    Each row of :math:`u`, along its last dimension, is split into blocks of :math:`2^\ell`
    elements, of which the last may be shorter. With :math:`\bar u` the means of the blocks,
    :math:`E` the operator that repeats a number for each element of a block, and :math:`t`
    counting steps from 1,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) \bar u, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \bar u^2, \quad
        R = u - E \bar u, \quad
        u \leftarrow \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
        \frac{E m + R}{\sqrt{E v + R^2} + \epsilon}

    so that the state is :math:`2^\ell` times smaller, while elements of one block may have
    different updates. The means are the approximation coefficients of the Haar wavelet transform,
    up to a factor. The published optimizer scales the result by a quarter:
    ``FOAM(), Scale(0.25), LR(1e-2)``. The recipe `foam_adamw` does this for matrices, and uses Adam
    for all other parameters.

    Vectors are not split, so for these it is `Adam`. Complex tensors raise an error. When an outer
    projection changes its basis, the state is reinitialized, because block means cannot be
    transported.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0, added to the root of the uncorrected second moment.
        level: :math:`\ell`, at least 0; with 0 it is `Adam`. Fixed: parameter groups cannot
            override it.

    Raises:
        ArgumentError: If a setting is out of range, or a tensor is complex.
        ArgumentTypeError: If ``level`` is not an integer.

    Cost: two numbers of state per block; about 9 passes, and two temporary tensors of the size
    of all parameters in a step.

    Differs from the authors' code: theirs takes second moments of the means of :math:`u^2`, where
    this module follows the paper; theirs pads a shorter block with zeros before taking its mean.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Scale
        >>> model = torch.nn.Linear(32, 20, bias=False)
        >>> optimizer = Optimizer(model.parameters(), FOAM(level=3), Scale(0.25), LR(1e-2))
        >>> optimizer.memory().state  # two moments of 20 rows of 4 means, 4 bytes each, and a count
        648

    References:
        Wen et al., 2025, https://arxiv.org/abs/2512.07112 (algorithm 1; the first factor, as in
        the authors' code).
    """

    scope = "tensor"
    kinds = {"exp_avg": "opaque", "exp_avg_sq": "opaque", "step": "scalar"}

    def __init__(
        self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, level: int = 2
    ) -> None:
        require(self, "level", level, minimum=0)
        if not isinstance(level, int):
            raise ArgumentTypeError(
                f"FOAM(level={level!r}) was given a {type(level).__name__}. level must be an "
                "integer: blocks have 2**level elements."
            )
        self.level = level
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        size = self._size(tensor, batch_dims)
        shape = (*tensor.shape[:-1], -(-tensor.shape[-1] // size)) if size > 1 else tensor.shape
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "exp_avg": tensor.new_zeros(shape),
            "exp_avg_sq": tensor.new_zeros(shape),
        }

    def _size(self, tensor: Tensor, batch_dims: int) -> int:
        """Returns the number of elements of a block."""
        return 2**self.level if tensor.ndim - batch_dims > 1 else 1

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
        beta1, beta2 = (scalar(beta) for beta in settings[0]["betas"])
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        steps = [state["step"] for state in states]
        sizes = [self._size(tensor, batch_dims) for tensor in tensors]
        torch._foreach_add_(steps, 1)
        counts = [scalar(step) for step in steps]
        means = [folded(*each) for each in zip(tensors, sizes, strict=True)]
        lerp_(exp_avgs, means, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        add_squares_(exp_avg_sqs, means, 1 - beta2)
        blocks = [_as_blocks(*each) for each in zip(tensors, sizes, strict=True)]
        rests = torch._foreach_sub(blocks, _for_blocks(means, tensors, sizes))
        del means
        divisors = torch._foreach_mul(rests, rests)
        torch._foreach_add_(divisors, _for_blocks(exp_avg_sqs, tensors, sizes))
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, scalar(settings[0]["eps"]))
        torch._foreach_add_(rests, _for_blocks(exp_avgs, tensors, sizes))
        torch._foreach_div_(rests, divisors)
        factors = [(1 - beta2**count) ** 0.5 / (1 - beta1**count) for count in counts]
        torch._foreach_mul_(rests, once(factors))
        return [rest.reshape(tensor.shape) for rest, tensor in zip(rests, tensors, strict=True)]


def folded(x: Tensor, size: int) -> Tensor:
    """Returns the means of blocks of `size` adjacent elements along the last dimension."""
    if size == 1:
        return x
    whole = x.shape[-1] // size * size
    means = x[..., :whole].unflatten(-1, (-1, size)).mean(-1) if whole else x[..., :0]
    if whole < x.shape[-1]:
        means = torch.cat([means, x[..., whole:].mean(-1, keepdim=True)], -1)
    return means


def _as_blocks(x: Tensor, size: int) -> Tensor:
    """Returns a tensor with a dimension for the elements of a block, if all blocks are whole."""
    whole = size > 1 and x.shape[-1] % size == 0
    return x.unflatten(-1, (-1, size)) if whole else x


def _for_blocks(means: list[Tensor], like: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Returns the number of each block for its elements, by broadcasting if all are whole."""
    result = []
    for mean, tensor, size in zip(means, like, sizes, strict=True):
        if size > 1 and tensor.shape[-1] % size == 0:
            mean = mean.unsqueeze(-1)
        elif size > 1:
            mean = mean.repeat_interleave(size, -1)[..., : tensor.shape[-1]]
        result.append(mean)
    return result
